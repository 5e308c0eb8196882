//! services.toml on a real file system: every way of saving it is noticed, and a bad one changes nothing.

use std::fs;
use std::os::unix::fs::symlink;

use coordinator::core::documents::{FileState, ServicesDocument, StatusDocument};

use crate::common::{SERVICES, TestCoordinator, until};

fn weighing(weight: u32) -> String {
    SERVICES.replace("weight = 80", &format!("weight = {weight}"))
}

async fn weight(coordinator: &TestCoordinator) -> u32 {
    let services: ServicesDocument = coordinator.fetch("/v1/services").await;
    services.services[0].backends[0].weight
}

async fn weighs(coordinator: &TestCoordinator, expected: u32) {
    until(&format!("weight {expected}"), async || weight(coordinator).await == expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_renaming_and_removing_and_writing_anew_are_noticed() {
    let coordinator = TestCoordinator::start().await;
    let path = coordinator.services();
    assert_eq!(weight(&coordinator).await, 80);

    coordinator.save(&weighing(71));
    weighs(&coordinator, 71).await;

    let draft = path.with_extension("swp");
    fs::write(&draft, weighing(72)).unwrap();
    fs::rename(&draft, &path).unwrap();
    weighs(&coordinator, 72).await;

    fs::remove_file(&path).unwrap();
    until("the file is missed", async || coordinator.status().await.services.state == FileState::Unreadable).await;
    assert_eq!(weight(&coordinator).await, 72);
    coordinator.save(&weighing(73));
    weighs(&coordinator, 73).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symlink_that_is_swapped_is_noticed_as_config_maps_do_it() {
    let dir = tempfile::tempdir().unwrap();
    for (version, weight) in [("v1", 61), ("v2", 62)] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("services.toml"), weighing(weight)).unwrap();
    }
    symlink("v1", dir.path().join("..data")).unwrap();
    symlink("..data/services.toml", dir.path().join("services.toml")).unwrap();
    let coordinator = TestCoordinator::start_in(dir).await;
    assert_eq!(weight(&coordinator).await, 61);

    let root = coordinator.dir.path();
    symlink("v2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();

    weighs(&coordinator, 62).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_elsewhere_behind_a_symlink_is_noticed_by_comparing() {
    let elsewhere = tempfile::tempdir().unwrap();
    let real = elsewhere.path().join("real.toml");
    fs::write(&real, weighing(51)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(&real, dir.path().join("services.toml")).unwrap();
    let coordinator = TestCoordinator::start_in(dir).await;
    assert_eq!(weight(&coordinator).await, 51);

    fs::write(&real, weighing(52)).unwrap();

    weighs(&coordinator, 52).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_the_status_says_so() {
    let coordinator = TestCoordinator::start().await;
    let before = coordinator.status().await;

    coordinator.save(&weighing(41).replace("[[service]]", "[[servce]]"));
    until("the file is refused", async || coordinator.status().await.services.state == FileState::Rejected).await;

    let status = coordinator.status().await;
    assert_eq!(status.revision, before.revision);
    assert!(!status.services.errors.is_empty());
    assert!(status.services.errors[0].contains("services.toml:10:"), "{:?}", status.services.errors);
    assert_eq!(weight(&coordinator).await, 80);
    coordinator.save(&weighing(42));
    weighs(&coordinator, 42).await;
    until("the error is gone", async || coordinator.status().await.services.errors.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_contradicts_the_members_is_refused() {
    let coordinator = TestCoordinator::start().await;
    let (_node, _) = coordinator.join("n1").await;

    coordinator.save(&SERVICES.replace("name = \"dc\"", "name = \"elsewhere\""));
    until("the file is refused", async || coordinator.status().await.services.state == FileState::Rejected).await;

    let status: StatusDocument = coordinator.status().await;
    assert!(status.services.errors[0].contains("n1"), "{:?}", status.services.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_starts_with_a_broken_file_runs_the_last_accepted() {
    let coordinator = TestCoordinator::start().await;
    let revision = coordinator.status().await.revision;
    coordinator.save(&weighing(33));
    weighs(&coordinator, 33).await;

    coordinator.running.stop().await;
    fs::write(coordinator.dir.path().join("services.toml"), "version = ").unwrap();
    let coordinator = TestCoordinator::start_in(coordinator.dir).await;

    let status = coordinator.status().await;
    assert_eq!(status.services.state, FileState::Rejected);
    assert_eq!(status.revision.0, revision.0 + 1);
    assert_eq!(weight(&coordinator).await, 33);
}
