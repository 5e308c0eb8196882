//! `edit`: a saved services.toml is live everywhere in under 1 s; what it does not touch goes on; a broken
//! one changes nothing and shows its error.

use std::time::{Duration, Instant};

use mesh_tests::boutique::Role;
use serde_json::Value;

use super::tools::{ensure, said, until};
use crate::edges::Edges;
use crate::lab::Lab;
use crate::report::CheckOutcome;

const LIMIT: Duration = Duration::from_secs(1);
const ALLOW: &str = "[[allow]]\nfrom = [\"recommendationservice\"]\nto = [\"productcatalogservice\"]\n";
/// Who is told of the weight: who carries what it is for, and who may call that.
const CONCERNED: [&str; 3] = ["c1-n1", "c2-n1", "pc-vm-1"];

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    let file = lab.world.services_file();
    let original = std::fs::read_to_string(&file).map_err(said)?;
    let outcome = steps(lab, &original).await;
    lab.edit(&original)?;
    let healed = until(Duration::from_secs(5), async || {
        let caller = &lab.world.program(Role::Recommendation).control;
        let series = caller.connect(Role::ProductCatalog, 1).await.map_err(said)?;
        ensure(series.ok == 1, || format!("the restored file does not bite: {:?}", series.errors))
    })
    .await;
    let figure = outcome?;
    healed?;
    Ok(figure)
}

async fn steps(lab: &Lab, original: &str) -> CheckOutcome {
    let frontend = &lab.world.program(Role::Frontend).control;
    let download = {
        let frontend = frontend.clone();
        tokio::spawn(async move { frontend.download(Role::ProductCatalog, 8, 2).await })
    };
    let before = Edges::read(&lab.world).await.map_err(said)?;
    let weight = weights_live(lab, original).await?;
    let bite = removal_bites(lab, original).await?;
    let broken = broken_changes_nothing(lab, original).await?;
    let after = Edges::read(&lab.world).await.map_err(said)?.since(&before);
    for (&(caller, callee), edge) in after.iter() {
        let touched = caller == Role::Recommendation || callee == Role::Recommendation;
        let pages = callee == Role::Frontend;
        ensure(touched || pages || edge.failed == 0, || {
            let said = edge.last_error.as_deref().unwrap_or("");
            format!("{}→{} failed: {said}", caller.service(), callee.service())
        })?;
    }
    let download = download.await.map_err(said)?.map_err(said)?;
    ensure(download.whole, || format!("the download broke: {download:?}"))?;
    let figure = format!(
        "weight live on the {} nodes concerned in {} ms, removed allow bites in {} ms, {broken}, a download across it whole",
        CONCERNED.len(),
        weight.as_millis(),
        bite.as_millis()
    );
    ensure(weight < LIMIT && bite < LIMIT, || figure.clone())?;
    Ok(figure)
}

async fn weights_live(lab: &Lab, original: &str) -> Result<Duration, String> {
    let changed = original.replace("weight = 80", "weight = 70");
    ensure(changed != original, || "there is no weight to change".into())?;
    let began = lab.edit(&changed)?;
    until(Duration::from_secs(10), async || {
        for node in CONCERNED {
            let service = lab.service(node, Role::ProductCatalog)?;
            let live = service.backends.iter().any(|b| b.weight == 70);
            ensure(live, || format!("{node} still has the old weight"))?;
        }
        Ok(began.elapsed())
    })
    .await
}

async fn removal_bites(lab: &Lab, original: &str) -> Result<Duration, String> {
    let without = original.replace(ALLOW, "");
    ensure(without != original, || "there is no such rule to remove".into())?;
    let caller = &lab.world.program(Role::Recommendation).control;
    let began = lab.edit(&without)?;
    let took = until(Duration::from_secs(10), async || {
        // A connection that the edit cuts in the middle ends by its own patience, so that is kept short.
        let (host, port) = (Role::ProductCatalog.service(), Role::ProductCatalog.dials());
        let series = caller.series(host, port, "n=1&patience=300").await.map_err(said)?;
        ensure(series.failed == 1, || "the removed permission still holds".into())?;
        Ok(began.elapsed())
    })
    .await?;
    // The long-lived channel must be cut too: no call of this edge is answered any more.
    let edge = async || {
        let edges = Edges::read(&lab.world).await.map_err(said)?;
        Ok::<_, String>(edges.get(Role::Recommendation, Role::ProductCatalog))
    };
    let cut = edge().await?;
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let later = edge().await?;
        ensure(later.ok <= cut.ok + 1, || "an old connection outlives its permission".into())?;
        if later.failed > cut.failed {
            return Ok(took);
        }
        ensure(Instant::now() < end, || "nothing was called after the edit".into())?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn broken_changes_nothing(lab: &Lab, original: &str) -> CheckOutcome {
    lab.edit(original)?;
    until(Duration::from_secs(5), async || {
        let caller = &lab.world.program(Role::Recommendation).control;
        let series = caller.connect(Role::ProductCatalog, 1).await.map_err(said)?;
        ensure(series.ok == 1, || format!("{:?}", series.errors))
    })
    .await?;
    let revision = lab.status("c2-n1")?.coordinator.revision;
    let mistake = original.replace("from = [\"cartservice\"]", "form = [\"cartservice\"]");
    lab.edit(&format!("{mistake}\n[[service\n"))?;
    let shown = until(Duration::from_secs(5), async || {
        let status = lab.world.coordinator.json(&["status"]).map_err(said)?;
        let errors = &status["services"]["errors"];
        let first = errors.get(0).and_then(Value::as_str);
        first.map(str::to_owned).ok_or_else(|| format!("no error is shown: {status}"))
    })
    .await?;
    let place = shown.contains("services.toml:");
    ensure(place, || format!("the error does not say where: {shown}"))?;
    let after = lab.status("c2-n1")?.coordinator.revision;
    ensure(after == revision, || "a broken file changed the mesh".into())?;
    let cart = &lab.world.program(Role::Cart).control;
    let series = cart.connect(Role::Redis, 3).await.map_err(said)?;
    ensure(series.failed == 0, || "a broken file took a permission away".into())?;
    Ok("a broken file changes nothing and shows its error".into())
}
