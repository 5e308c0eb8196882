//! What the state directory promises.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use mesh_proto::base::id::Revision;
use mesh_proto::model::netmap::{Mesh, OwnNode};

use super::*;
use crate::base::files::{
    ALL_OF_MACHINE, ALL_OF_NODE, FIRST_TUNNEL_KEY, FORMER_TUNNEL_KEY, IDENTITY_KEY, MARK, RECORD, ROLL, TUNNEL_KEY,
};

pub(crate) fn netmap(revision: u64) -> NetMap {
    NetMap {
        epoch: Default::default(),
        sites: Default::default(),
        revision: Revision(revision),
        mesh: Mesh {
            name: "boutique".parse().unwrap(),
            range: MeshRange::default(),
            domains: vec!["mesh.internal".parse().unwrap()],
            coordinators: Vec::new(),
            lock: None,
        },
        node: OwnNode {
            sequence: 0,
            id: NodeId(1),
            name: "n1".parse().unwrap(),
            site: "c1".parse().unwrap(),
            address: Flat([241, 1, 0, 1].into()),
            blocks: Vec::new(),
            guarded: true,
        },
        peers: BTreeMap::new(),
        services: BTreeMap::new(),
        names: Default::default(),
        rules: Vec::new(),
        warnings: Vec::new(),
    }
}

pub(crate) fn enrolment() -> Enrolment {
    Enrolment {
        version: 1,
        coordinators: vec!["192.0.2.1:7700".into()],
        worked: Vec::new(),
        pins: vec![IdentityKey([1; 32])],
        node: "n1".parse().unwrap(),
        id: NodeId(1),
        site: "c1".parse().unwrap(),
        mesh: "boutique".parse().unwrap(),
        range: MeshRange::default(),
        address: Flat([241, 1, 0, 1].into()),
        blocks: Vec::new(),
        domains: Vec::new(),
    }
}

#[test]
fn an_enrolment_is_read_as_it_was_written_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    assert_eq!(state.enrolment().unwrap(), None);

    state.save_enrolment(&enrolment()).unwrap();
    state.save_netmap(&netmap(1)).unwrap();
    assert_eq!(state.enrolment().unwrap(), Some(enrolment()));
    let mode = fs::metadata(state.path(ENROLMENT)).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600);

    crate::keys::node::NodeKeys::make_next(&state).unwrap();

    state.forget().unwrap();
    assert_eq!(state.enrolment().unwrap(), None);
    assert!(crate::keys::node::NodeKeys::next(&state).unwrap().is_none());
    assert_eq!(state.netmap(), None);
}

#[test]
fn who_leaves_forgets_every_file_of_the_mesh_and_every_key_but_the_operators() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    for &file in ALL_OF_MESH.iter().chain(ALL_OF_NODE).chain(ALL_OF_MACHINE) {
        state.replace(file, b"x").unwrap();
    }

    state.forget().unwrap();

    let left = |files: &[StateFile]| files.iter().filter(|&&file| state.path(file).exists()).count();
    assert_eq!([left(ALL_OF_MESH), left(ALL_OF_NODE), left(ALL_OF_MACHINE)], [0, 0, ALL_OF_MACHINE.len()]);
    assert_eq!(fs::read_dir(state.path(LOCK).parent().unwrap()).unwrap().count(), ALL_OF_MACHINE.len());
    assert_eq!(state.lock_key(), Some(state.path(LOCK_KEY)));
}

#[test]
fn what_the_disk_refuses_waits_and_of_each_file_the_newest_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let shown = watch::Sender::default();
    let state = State::open(&dir.path().join("s")).unwrap().telling(shown.clone());
    let told = |file: StateFile| shown.borrow().files.get(file.name()).map(|refused| refused.attempts);
    // Nothing can be put in the place of a folder.
    fs::create_dir(state.path(NETMAP)).unwrap();
    state.keep_netmap(&netmap(1)).unwrap_err();
    state.keep_netmap(&netmap(2)).unwrap_err();
    state.store_waiting();
    assert_eq!((told(NETMAP), shown.borrow().failures), (Some(3), 3));
    let sentence = shown.borrow().sentences().next().cloned().unwrap();
    assert!(sentence.contains("netmap.json") && sentence.contains("removed permissions"), "{sentence}");
    fs::remove_dir(state.path(NETMAP)).unwrap();
    state.store_waiting();
    assert_eq!((state.netmap(), told(NETMAP)), (Some(netmap(2)), None));
    state.store_waiting();
    assert_eq!(fs::read_dir(dir.path().join("s")).unwrap().count(), 1, "nothing is left half written");

    // What is replaced, removed or left since does not come back.
    for settle in [
        (|state: &State| state.replace(MARK, b"newer")) as fn(&State) -> Result<(), StateError>,
        |state| state.remove(MARK),
        |state| state.forget(),
        |state| state.keep_absent(MARK),
    ] {
        fs::create_dir(state.path(MARK)).unwrap();
        state.keep(MARK, b"older").unwrap_err();
        fs::remove_dir(state.path(MARK)).unwrap();
        settle(&state).unwrap();
        state.store_waiting();
        assert!(told(MARK).is_none() && fs::read(state.path(MARK)).map_or(true, |text| text == b"newer"));
        let _ = fs::remove_file(state.path(MARK));
    }
}

#[tokio::test]
async fn what_waits_is_tried_again_by_itself_until_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let shown = watch::Sender::default();
    let state = State::open(&dir.path().join("s")).unwrap().telling(shown.clone());
    fs::create_dir(state.path(MARK)).unwrap();
    state.keep(MARK, b"x").unwrap_err();
    let tending = tokio::spawn(state.clone().tend());
    let attempts = || shown.borrow().files.get(MARK.name()).map_or(0, |refused| refused.attempts);
    let until = async |condition: &dyn Fn() -> bool| {
        let met = async {
            while !condition() {
                sleep(TURN / 10).await;
            }
        };
        tokio::time::timeout(LONGEST + 2 * TURN, met).await.unwrap();
    };
    until(&|| attempts() >= 2).await;
    fs::remove_dir(state.path(MARK)).unwrap();
    until(&|| attempts() == 0).await;
    assert_eq!(fs::read(state.path(MARK)).unwrap(), b"x");
    tending.abort();
}

#[test]
fn a_full_disk_a_read_only_one_and_one_that_fails_get_advice_of_their_own() {
    let said = |errno: Errno| failed("write", Path::new("/d/mark.json"), errno.into()).to_string();
    for (errno, words) in [
        (Errno::NOSPC, ["make room there", "df -h /d"]),
        (Errno::DQUOT, ["make room there", "df -i /d"]),
        (
            Errno::ROFS,
            ["then run `mount -o remount,rw` on the mount that `findmnt -T /d` shows", "`systemctl restart meshd`"],
        ),
        (Errno::IO, ["its disk fails", "dmesg"]),
        (Errno::ACCESS, ["run as root", "state_dir"]),
    ] {
        let said = said(errno);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}

#[test]
fn a_torn_map_falls_back_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    state.save_netmap(&netmap(1)).unwrap();
    state.save_netmap(&netmap(2)).unwrap();
    assert_eq!(state.netmap(), Some(netmap(2)));

    let whole = fs::read(state.path(NETMAP)).unwrap();
    for cut in [0, 5, 40, 80, whole.len() / 2, whole.len() - 1] {
        fs::write(state.path(NETMAP), &whole[..cut]).unwrap();
        assert_eq!(state.netmap(), Some(netmap(1)), "cut at {cut}");
    }

    state.save_netmap(&netmap(3)).unwrap();
    assert_eq!(state.netmap(), Some(netmap(3)));
    fs::remove_file(state.path(NETMAP)).unwrap();
    assert_eq!(state.netmap(), Some(netmap(1)), "a torn map never becomes the fallback");
}

#[test]
fn a_flipped_bit_in_a_cache_or_key_file_is_noticed_or_harmless() {
    use crate::control::map_guard;
    use crate::control::map_guard::MapGuard;
    use crate::control::roll_file;
    use mesh_host::identity::verify;

    use crate::keys::node::NodeKeys;
    use crate::node::self_record::Author;
    use mesh_proto::trust::audit_log::Roll;
    use mesh_proto::trust::high_water_mark::WentBack;
    use mesh_proto::wire::NodeFacts;

    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    state.save_netmap(&netmap(1)).unwrap();
    state.save_netmap(&netmap(2)).unwrap();
    state.save_enrolment(&enrolment()).unwrap();
    NodeKeys::load_or_make(&state).unwrap();
    NodeKeys::rotate(&state).unwrap();
    let keys = NodeKeys::load(&state).unwrap();
    map_guard::begin(&state, &netmap(2)).unwrap();
    let facts = NodeFacts { mtu: 1420, ..NodeFacts::default() };
    let record = Author::new(&state).sealed(&keys, facts.clone(), 0);
    let active = Active { peer: "n2".parse().unwrap(), endpoint: "192.0.2.2:51820".parse().unwrap() };
    state.save_activity(&[active]).unwrap();
    let roll = Roll { members: [keys.identity()].into(), expelled: [IdentityKey([3; 32])].into(), ..Roll::default() };
    roll_file::write(&state, &json(&roll)).unwrap();
    let told = |keys: &NodeKeys| (keys.tunnel().to_bytes(), keys.lanes(2).former_publics(), keys.identity());
    let known = told(&keys);
    let (mut noticed, mut flips) = (0, 0);
    let files = [NETMAP, PREVIOUS_NETMAP, ENROLMENT, MARK, ROLL, RECORD, ACTIVITY];
    for name in files.into_iter().chain([TUNNEL_KEY, FORMER_TUNNEL_KEY, FIRST_TUNNEL_KEY, IDENTITY_KEY]) {
        let whole = fs::read(state.path(name)).unwrap();
        // A record that is noticed is signed anew, and that is written to the disk.
        let step = if name == RECORD { 13 } else { 1 };
        for bit in (0..whole.len() * 8).step_by(step) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(state.path(name), &bytes).unwrap();
            // Whether it is as it was, and whether it is known not to be.
            let (is_good, is_noticed) = match name {
                NETMAP => {
                    let map = state.netmap();
                    (map == Some(netmap(2)), map == Some(netmap(1)))
                }
                PREVIOUS_NETMAP => (state.netmap() == Some(netmap(2)), false),
                ENROLMENT => {
                    let enrolled = state.enrolment();
                    (enrolled.as_ref().is_ok_and(|e| *e == Some(enrolment())), enrolled.is_err())
                }
                MARK => {
                    let mut guard = MapGuard::new(Some(state.clone()));
                    guard.resume(netmap(2).into());
                    let back = guard.hears(Revision(1));
                    let is_held = back == Err(WentBack::Revision { at: Revision(1), seen: Revision(2) });
                    (is_held && guard.hears(Revision(3)).is_ok(), false)
                }
                ROLL => {
                    let read = roll_file::read(&state);
                    (read.as_ref() == Some(&roll), read.is_none())
                }
                RECORD => {
                    let again = Author::new(&state).sealed(&keys, facts.clone(), record.sequence);
                    let signed = again.signed.as_ref().is_some_and(|signed| signed.is_by(&keys.identity(), verify));
                    let is_new = signed && again.sequence > record.sequence;
                    (again == record, is_new)
                }
                // Only a hint: WireGuard itself says who answers there.
                ACTIVITY => (state.activity().len() <= 1, false),
                _ => {
                    let loaded = NodeKeys::load(&state);
                    (loaded.as_ref().is_ok_and(|k| told(k) == known), loaded.is_err())
                }
            };
            assert!(is_good || is_noticed, "bit {bit} of {name} alters it unnoticed");
            noticed += usize::from(is_noticed);
            flips += 1;
        }
        fs::write(state.path(name), whole).unwrap();
    }
    assert!(flips >= 10_000 && noticed * 3 > flips, "{noticed} of {flips} noticed");
}

#[test]
fn what_an_older_version_wrote_without_sums_is_read() {
    use crate::keys::node::NodeKeys;

    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    state.replace(ENROLMENT, &json(&enrolment())).unwrap();
    assert_eq!(state.enrolment().unwrap(), Some(enrolment()));
    let keys = NodeKeys::load_or_make(&state).unwrap();
    for name in [TUNNEL_KEY, IDENTITY_KEY] {
        let text = fs::read_to_string(state.path(name)).unwrap();
        let (key, _) = text.split_once(' ').unwrap();
        state.replace(name, format!("{key}\n").as_bytes()).unwrap();
    }
    let again = NodeKeys::load_or_make(&state).unwrap();
    assert_eq!((again.tunnel().to_bytes(), again.identity()), (keys.tunnel().to_bytes(), keys.identity()));
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let error = State::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

#[test]
fn one_daemon_at_a_time_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    let held = state.lock().unwrap();
    let own = Some(std::process::id());
    assert!(matches!(state.lock(), Err(StateError::Locked { process, .. }) if process == own));
    drop(held);
    assert!(state.lock().is_ok());
}

#[test]
fn activity_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    let active = vec![Active { peer: "n2".parse().unwrap(), endpoint: "192.0.2.2:51820".parse().unwrap() }];
    state.save_activity(&active).unwrap();
    assert_eq!(state.activity(), active);
}
