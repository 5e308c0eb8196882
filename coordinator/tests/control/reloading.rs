//! What `reload` and `apply` say holds once they return, and what is refused alters nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use axum::routing::{get, post};
use axum::{Json, Router};
use coordinator::base::words::SOCKET;
use coordinator::core::documents::{FileState, InForceDocument, PlanDocument, Proposal, TokenLine};
use data_encoding::HEXLOWER;
use hyper::{Method, StatusCode};
use mesh_host::client::{AskError, Client};
use mesh_host::socket::Socket;
use mesh_host::sums::sha256;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::common::{SERVICES, TestCoordinator};
use crate::verbs::{CoordinatorProgram, run};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `SERVICES` and one more site.
fn with_site(name: &str) -> String {
    format!("{SERVICES}[[site]]\nname = \"{name}\"\n")
}

/// `SERVICES` with one mistake, in line 8.
fn mistyped() -> String {
    SERVICES.replace("kind = ", "knd = ")
}

#[test]
fn a_token_for_a_new_site_works_in_the_line_after_apply() {
    let program = CoordinatorProgram::start();
    let file = program.dir.path().join("services.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    for round in 0..5 {
        let site = format!("new-{round}");
        fs::write(program.dir.path().join("draft.toml"), with_site(&site)).unwrap();

        let applied = program.run(&["apply", "draft.toml"]);
        let token = program.run(&["token", "create", "--site", &site]);

        assert!(applied.status.success(), "{applied:?}");
        assert!(
            String::from_utf8_lossy(&applied.stdout).contains("services.toml is in force at revision"),
            "{applied:?}"
        );
        assert!(token.status.success(), "{token:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), with_site(&site), "it outlives a restart");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }
    let same = program.json(&["apply", "services.toml"]);
    assert_eq!(same["schema"], "coordinator.in_force/1");
    assert_eq!(same["revision"], program.json(&["status"])["revision"]);
    assert!(!program.dir.path().join("services.toml.tmp").exists());
}

#[test]
fn a_bad_file_that_is_applied_alters_nothing_and_is_told_by_line_and_column() {
    let program = CoordinatorProgram::start();
    let file = program.dir.path().join("services.toml");
    let before = program.json(&["status"]);
    fs::write(program.dir.path().join("draft.toml"), mistyped()).unwrap();

    let bad = program.run(&["apply", "draft.toml"]);

    assert_eq!((bad.status.code(), bad.stdout.len()), (Some(1), 0), "{bad:?}");
    assert!(said(&bad).contains("draft.toml:8:1") && said(&bad).contains("did you mean `kind`?"), "{}", said(&bad));
    assert_eq!(fs::read_to_string(&file).unwrap(), SERVICES);
    let after = program.json(&["status"]);
    assert_eq!(after["revision"], before["revision"]);
    assert_eq!(after["services"]["state"], "accepted");
    assert_eq!(program.run(&["apply", "none.toml"]).status.code(), Some(1));

    // A place that cannot be written.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    fs::write(program.dir.path().join("draft.toml"), with_site("new")).unwrap();
    let unsaved = program.run(&["apply", "draft.toml"]);
    assert_eq!(unsaved.status.code(), Some(1));
    assert!(said(&unsaved).contains("Nothing is altered"), "{}", said(&unsaved));
    assert_eq!(program.run(&["token", "create", "--site", "new"]).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_the_mesh_is_refused_before_it_is_saved() {
    let coordinator = TestCoordinator::start().await;
    coordinator.join("n1").await;
    let other = SERVICES.replace("name = \"boutique\"", "name = \"other\"");
    fs::write(coordinator.dir.path().join("draft.toml"), other).unwrap();

    let socket = coordinator.socket();
    let words = ["--socket", socket.to_str().unwrap(), "apply", "draft.toml"];
    let refused = tokio::task::block_in_place(|| run(coordinator.dir.path(), &words));

    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(said(&refused).contains("name is boutique and cannot become other"), "{}", said(&refused));
    assert_eq!(fs::read_to_string(coordinator.services()).unwrap(), SERVICES);
    assert_eq!(coordinator.status().await.services.state, FileState::Accepted);
}

/// A coordinator that finds nothing wrong with a text, says that its file is at `place`, and answers a reload as told.
async fn pretend(place: &Path, reload: (StatusCode, Value)) -> (tempfile::TempDir, watch::Sender<bool>) {
    let real = TestCoordinator::start().await;
    let mut status: Value = real.fetch("/v1/status").await;
    status["services"]["path"] = json!(place);
    let plan = json!({"schema": "coordinator.plan/1", "revision": 1, "changes": [], "warnings": []});
    let routes = Router::new()
        .route("/v1/status", get(async move || Json(status)))
        .route("/v1/plan", post(async move || Json(plan)))
        .route("/v1/reload", post(async move || (reload.0, Json(reload.1))));
    let dir = tempfile::tempdir().unwrap();
    let socket = Socket::bind(&dir.path().join("admin.sock"), &SOCKET).unwrap();
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(socket.serve(move |_| routes.clone(), stopping));
    (dir, stop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_after_all_does_not_stay_in_the_place_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("services.toml");
    fs::write(dir.path().join("draft.toml"), with_site("new")).unwrap();
    let refusal = json!({"error": "services", "message": "the store is full"});
    let other = json!({
        "schema": "coordinator.in_force/1", "file": place, "revision": 7, "digest": "00", "warnings": []
    });
    for (answer, why) in
        [((StatusCode::UNPROCESSABLE_ENTITY, refusal), "the store is full"), ((StatusCode::OK, other), "another text")]
    {
        for before in [Some(SERVICES), None] {
            match before {
                Some(before) => fs::write(&place, before).unwrap(),
                None => fs::remove_file(&place).unwrap(),
            }
            let (folder, _stop) = pretend(&place, answer.clone()).await;
            let socket = folder.path().join("admin.sock");
            let words = ["--socket", socket.to_str().unwrap(), "apply", "draft.toml"];
            let refused = tokio::task::block_in_place(|| run(dir.path(), &words));

            assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{refused:?}");
            assert!(said(&refused).contains(why), "{}", said(&refused));
            assert_eq!(fs::read_to_string(&place).ok().as_deref(), before);
        }
        fs::write(&place, "").unwrap();
    }
}

#[test]
fn a_reload_returns_when_the_file_is_in_force_and_fails_with_what_is_wrong() {
    let mut program = CoordinatorProgram::start();
    let file = program.dir.path().join("services.toml");
    let config = program.dir.path().join("coordinator.toml");
    let config = config.to_str().unwrap();

    fs::write(&file, with_site("new")).unwrap();
    let good = program.run(&["reload"]);
    assert!(good.status.success(), "{good:?}");
    let token = program.run(&["token", "create", "--site", "new"]);
    assert!(token.status.success(), "{token:?}");

    fs::write(&file, mistyped()).unwrap();
    for words in [&["reload"][..], &["reload", "--config", config]] {
        let bad = program.run(words);
        assert_eq!((bad.status.code(), bad.stdout.len()), (Some(1), 0), "{bad:?}");
        assert!(said(&bad).contains("services.toml:8:1") && said(&bad).contains("did you mean `kind`?"), "{bad:?}");
        assert!(said(&bad).contains("what was in force before still is"), "{bad:?}");
    }
    assert!(program.run(&["token", "create", "--site", "new"]).status.success(), "the text before stays in force");

    fs::write(&file, b"version = 1\n# \xff\n").unwrap();
    let binary = program.run(&["reload"]);
    assert_eq!(binary.status.code(), Some(1), "{binary:?}");
    assert!(said(&binary).contains("services.toml: line 2, column 3 is not UTF-8"), "{binary:?}");

    fs::remove_file(&file).unwrap();
    let missing = program.run(&["reload"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(said(&missing).contains("write it, or restore it"), "{missing:?}");

    program.terminate();
    for words in [&["reload"][..], &["reload", "--config", config], &["apply", "coordinator.toml"]] {
        assert_eq!(program.run(words).status.code(), Some(4), "{words:?}");
    }
}

#[tokio::test]
async fn of_texts_that_are_saved_one_after_another_each_reload_puts_its_own_in_force() {
    let coordinator = TestCoordinator::start().await;
    let client = Client::new(&SOCKET, coordinator.socket());
    for round in 0..40 {
        let text = with_site(&format!("s{round}"));
        coordinator.save(&text);
        // A signal that asks for the same must not bring an older text back.
        let (reloaded, ()) = tokio::join!(client.post::<InForceDocument>("/v1/reload"), coordinator.running.reload());
        assert_eq!(reloaded.unwrap().digest, HEXLOWER.encode(&sha256(&[text.as_bytes()])), "{round}");
    }
}

#[tokio::test]
async fn a_token_for_a_site_of_a_refused_file_is_told_that_it_was_refused() {
    let coordinator = TestCoordinator::start().await;
    let client = Client::new(&SOCKET, coordinator.socket());
    let wanted = json!({"site": "new", "name": null, "ttl_s": 600, "serve": [], "uses": 1});
    let ask =
        async || client.ask::<TokenLine>(Method::POST, "/v1/tokens", Some(&wanted)).await.err().unwrap().to_string();
    let unknown = ask().await;
    assert!(unknown.contains("name one of these") && !unknown.contains("check"), "{unknown}");

    coordinator.save(&format!("{}[[site]]\nname = \"new\"\n", mistyped()));
    assert!(client.post::<InForceDocument>("/v1/reload").await.is_err());
    let refused = ask().await;

    let path = coordinator.services();
    let check = format!("`mesh-coordinator check {}`", path.display());
    assert!(refused.contains("was refused") && refused.contains(&check), "{refused}");
    assert!(refused.contains("services.toml:8:1: error[MESH0104]"), "{refused}");
}

#[tokio::test]
async fn a_token_for_a_mesh_without_sites_is_not_told_to_name_one_of_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("services.toml"), mistyped()).unwrap();
    let coordinator = TestCoordinator::start_in(dir).await;
    let client = Client::new(&SOCKET, coordinator.socket());
    let wanted = json!({"site": "dc", "name": null, "ttl_s": 600, "serve": [], "uses": 1});

    let said = client.ask::<TokenLine>(Method::POST, "/v1/tokens", Some(&wanted)).await.err().unwrap().to_string();

    assert!(!said.contains("name one of these"), "{said}");
    assert!(said.contains("was refused") && said.contains("`mesh-coordinator check "), "{said}");
}

#[tokio::test]
async fn a_token_that_grants_an_unknown_service_warns() {
    let coordinator = TestCoordinator::start().await;
    let client = Client::new(&SOCKET, coordinator.socket());
    let ask = async |serve: &[&str]| {
        let wanted = json!({"site": "dc", "name": "n1", "ttl_s": 600, "serve": serve, "uses": 1});
        client.ask::<TokenLine>(Method::POST, "/v1/tokens", Some(&wanted)).await.unwrap().warnings
    };
    assert_eq!(ask(&["cart"]).await, <[String; 0]>::default());
    let [warning] = &*ask(&["cart", "crat", "nosuch"]).await else { panic!("one warning") };
    assert!(warning.contains("no service `crat`, `nosuch`") && warning.contains("did you mean `cart`?"), "{warning}");
}

#[tokio::test]
async fn a_member_where_a_service_is_meant_is_told_as_host() {
    let coordinator = TestCoordinator::start().await;
    coordinator.join("vm-1").await;
    let client = Client::new(&SOCKET, coordinator.socket());
    let text = format!("{SERVICES}[[allow]]\nfrom = [\"vm-1\"]\nto = [\"cart\"]\n");
    let proposal = Proposal { file: "draft.toml".into(), text: text.clone() };

    let plan = client.ask::<PlanDocument>(Method::POST, "/v1/plan", Some(&proposal)).await;
    coordinator.save(&text);
    let reload = client.post::<InForceDocument>("/v1/reload").await;

    for refused in [plan.err(), reload.err()] {
        let Some(AskError::Refused(body)) = refused else { panic!("{refused:?}") };
        assert!(body.message.contains("did you mean `host:vm-1`?"), "{}", body.message);
    }
}

#[tokio::test]
async fn check_and_plan_warn_of_a_domain_that_would_hide_names_of_strangers() {
    let coordinator = TestCoordinator::start().await;
    let client = Client::new(&SOCKET, coordinator.socket());
    let text =
        SERVICES.replace("name = \"boutique\"\n", "name = \"boutique\"\ndomains = [\"mesh.internal\", \"dev\"]\n");
    fs::write(coordinator.dir.path().join("draft.toml"), &text).unwrap();
    let check = run(coordinator.dir.path(), &["check", "draft.toml"]);
    assert!(
        check.status.success() && said(&check).contains("warning[MESH0146]: `dev` is a public suffix"),
        "{check:?}"
    );
    let proposal = Proposal { file: "draft.toml".into(), text };

    let plan: PlanDocument = client.ask(Method::POST, "/v1/plan", Some(&proposal)).await.unwrap();

    let [warning] = &*plan.warnings else { panic!("{:?}", plan.warnings) };
    assert!(warning.contains("draft.toml:4:29: warning[MESH0146]: `dev` is a public suffix"), "{warning}");
}
