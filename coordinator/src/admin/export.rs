//! `export`: all that is stored as one JSON document, for people and for other programs. It holds no secret.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use crate::core::Core;
use crate::core::failure::Rejection;
use crate::store::StoreTable;
use mesh_proto::wire::ErrorCode;

/// The schema of the document.
const EXPORT: &str = "coordinator.export/1";

/// Answers with everything but the log, which `log` tells.
pub(crate) async fn export(State(core): State<Arc<Core>>) -> Result<Json<Value>, Rejection> {
    let read = core.with(|registry| (registry.snapshot(), registry.epoch(), registry.log_head())).await;
    let (stored, epoch, head) = read;
    let internal = |error: String| Rejection::new(ErrorCode::Internal, error);
    let (revision, writes) = stored.map_err(|error| internal(error.to_string()))?;
    let mut tables: Map<String, Value> = Map::new();
    for table in StoreTable::ALL {
        tables.insert(table.name().to_owned(), json!({}));
    }
    for write in writes {
        let (Some(table), Some(value)) = (tables.get_mut(write.table.name()), write.value) else { continue };
        let mut value: Value = serde_json::from_slice(&value).map_err(|error| internal(error.to_string()))?;
        if write.table == StoreTable::Tokens
            && let Some(token) = value.as_object_mut()
        {
            token.insert("digest".into(), json!("[redacted]"));
        }
        if let Some(table) = table.as_object_mut() {
            table.insert(write.key, value);
        }
    }
    Ok(Json(json!({
        "schema": EXPORT,
        "mesh": core.world().mesh.name,
        "revision": revision,
        "epoch": epoch,
        "log": head,
        "tables": tables,
    })))
}
