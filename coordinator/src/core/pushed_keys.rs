//! Issuers' keys that the operator pushed, here or at another coordinator: from the registry to who verifies by them.

use std::sync::Arc;

use crate::core::Core;
use crate::oidc::issuers::Issuers;

/// Takes up the issuers' keys that are stored because the operator pushed them.
pub(crate) async fn take_pushed(core: &Arc<Core>, issuers: &Arc<Issuers>) {
    let issuers = Arc::clone(issuers);
    core.with(move |registry| {
        for name in issuers.pushed() {
            if let Some(pushed) = registry.pushed(name) {
                issuers.push(name, pushed);
            }
        }
    })
    .await;
}
