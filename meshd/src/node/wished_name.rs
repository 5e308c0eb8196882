//! A name that was wished for, and the one that the coordinator recorded: it decides, and a token's own name before all.

use mesh_proto::base::id::NodeName;

use crate::base::state_dir::State;
use crate::config::Config;

/// Says that a node is called otherwise in the mesh than its meshd.toml says, and what to do; none where it is not.
pub(crate) fn differs(wish: &NodeName, recorded: &NodeName) -> Option<String> {
    (wish != recorded).then(|| {
        format!(
            "this node is `{recorded}` in the mesh, as the coordinator recorded it when it joined, and not `{wish}` as meshd.toml says: rules, names and `meshd why` know it as `{recorded}`; write `name = \"{recorded}\"`, or have it called `{wish}`: `meshd leave`, and join with a token for that name"
        )
    })
}

/// What `meshd check` says of the name of a member: a warning if meshd.toml names another one, a note if the host does.
pub(crate) fn look(config: &Config) -> (Option<String>, Option<String>) {
    let enrolment = State::open(&config.state_dir).and_then(|state| state.enrolment());
    let Ok(Some(enrolment)) = enrolment else { return (None, None) };
    let (wish, recorded) = (&config.name, &enrolment.node);
    if config.is_name_set {
        return (differs(wish, recorded), None);
    }
    let note = format!("this host is called `{wish}`, and is `{recorded}` in the mesh");
    (None, (wish != recorded).then_some(note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::state_dir::tests::enrolment;

    #[test]
    fn a_name_that_is_not_the_recorded_one_is_told_with_both() {
        let name = |word: &str| word.parse::<NodeName>().expect("a name");
        assert_eq!(differs(&name("a"), &name("a")), None);
        let told = differs(&name("vm-1"), &name("vm-2")).unwrap_or_default();
        assert!(told.contains("this node is `vm-2` in the mesh") && told.contains("not `vm-1`"), "{told}");
    }

    #[test]
    fn check_warns_of_a_name_in_the_file_and_notes_that_of_the_host() {
        let dir = tempfile::tempdir().expect("a folder");
        let enrolment = enrolment();
        let config = |name: &NodeName, is_name_set| Config {
            name: name.clone(),
            is_name_set,
            state_dir: dir.path().join("s"),
            ..Config::default()
        };
        let other: NodeName = "other".parse().expect("a name");
        assert_eq!(look(&config(&other, true)), (None, None), "no member yet");
        let state = State::open(&dir.path().join("s")).expect("a state directory");
        state.keep_enrolment(&enrolment).expect("stored");
        assert_eq!(look(&config(&enrolment.node, true)), (None, None));
        assert_eq!(look(&config(&enrolment.node, false)), (None, None));
        assert_eq!(look(&config(&other, true)), (differs(&other, &enrolment.node), None));
        let (warning, note) = look(&config(&other, false));
        assert_eq!(warning, None, "a token named it: that is well");
        assert!(note.is_some_and(|note| note.contains("is called `other`")));
    }
}
