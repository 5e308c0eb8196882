//! Lock mode: the coordinator passes on what a key that it does not hold has signed, and keeps nodes back that it
//! did not sign. That it checks signatures itself saves nodes the trouble; they do not rely on it.

use std::sync::Arc;

use mesh_host::identity::verify;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::trust::network_lock::{LockChange, MAX_CHANGES, NetworkLock};
use mesh_proto::trust::signed_record::Signature;
use mesh_proto::wire::ErrorCode;
use mesh_proto::world::NodeRecord;

use super::change::{LockStep, Refused, Signatures};
use super::state::State;

impl State {
    /// Takes a step, and returns the node that it admitted.
    pub(super) fn take_lock_step(&mut self, step: LockStep) -> Result<Option<NodeName>, Refused> {
        match step {
            LockStep::Begin { key, signatures } => self.begin_lock(key, &signatures).map(|()| None),
            LockStep::Change { change, signatures } => self.change_lock(change, &signatures).map(|()| None),
            LockStep::Abandon => self.abandon_lock().map(|()| None),
            LockStep::Admit { node, signature } => self.admit_by_lock(&node, signature).map(|()| Some(node)),
        }
    }

    pub(super) fn locked_by(&self) -> Option<IdentityKey> {
        self.world.mesh.lock.as_ref().and_then(|lock| lock.key)
    }

    fn begin_lock(&mut self, key: IdentityKey, signatures: &Signatures) -> Result<(), Refused> {
        if let Some(held) = self.locked_by() {
            let text = format!(
                "this mesh is locked by the key {held} already; `lock replace` puts another in its place, `lock disable` ends it"
            );
            return Err(Refused::new(ErrorCode::Lock, text));
        }
        let lock = self.world.mesh.lock.clone().unwrap_or_default();
        // Else the statement that ended it could be shown again.
        if lock.changes.iter().any(|change| change.from == key) {
            let text = format!("the key {key} was a lock of this mesh before; make another: name a new FILE");
            return Err(Refused::new(ErrorCode::Lock, text));
        }
        self.set_lock(NetworkLock { key: Some(key), ..lock }, signatures)
    }

    fn change_lock(&mut self, change: LockChange, signatures: &Signatures) -> Result<(), Refused> {
        let held = self.locked_by();
        if held != Some(change.from) {
            let text = match held {
                Some(held) => {
                    format!("this mesh is locked by the key {held}, and that is another; name the FILE of that one")
                }
                None => "this mesh is not locked; there is nothing to do".into(),
            };
            return Err(Refused::new(ErrorCode::Lock, text));
        }
        if !change.is_good(&self.world.mesh.name, verify) {
            return Err(Refused::new(
                ErrorCode::Lock,
                "the lock's key did not sign this; are both ends of one version?",
            ));
        }
        let mut lock = self.world.mesh.lock.clone().unwrap_or_default();
        if change.to.is_some_and(|to| to == change.from || lock.changes.iter().any(|before| before.from == to)) {
            return Err(Refused::new(
                ErrorCode::Lock,
                "that key was a lock of this mesh before; name a FILE for a new one",
            ));
        }
        lock.key = change.to;
        lock.changes.push(change);
        let surplus = lock.changes.len().saturating_sub(MAX_CHANGES);
        lock.changes.drain(..surplus);
        self.set_lock(lock, signatures)
    }

    fn abandon_lock(&mut self) -> Result<(), Refused> {
        if self.locked_by().is_none() {
            return Err(Refused::new(ErrorCode::Lock, "this mesh is not locked; there is nothing to do"));
        }
        let lock = self.world.mesh.lock.clone().unwrap_or_default();
        self.set_lock(NetworkLock { key: None, ..lock }, &Signatures::new())
    }

    /// Puts a lock in force. Nobody is cut off by it: its key has to have signed for all who are admitted.
    fn set_lock(&mut self, lock: NetworkLock, signatures: &Signatures) -> Result<(), Refused> {
        let mut nodes = Vec::new();
        if let Some(key) = &lock.key {
            for (name, record) in self.world.nodes.iter().filter(|(_, record)| !self.world.waits(record)) {
                let Some(signature) = signatures.get(name) else {
                    let text = format!("node {name} joined meanwhile and is not signed for; run the same again");
                    return Err(Refused::new(ErrorCode::Busy, text));
                };
                self.check_signature(name, record, key, signature)?;
                nodes.push((name.clone(), NodeRecord { countersigned: Some(*signature), ..NodeRecord::clone(record) }));
            }
        }
        let world = Arc::make_mut(&mut self.world);
        world.mesh.lock = Some(lock);
        for (name, record) in nodes {
            world.insert_node(name, record);
        }
        Ok(())
    }

    fn admit_by_lock(&mut self, name: &NodeName, signature: Signature) -> Result<(), Refused> {
        let Some(key) = self.locked_by() else {
            return Err(Refused::new(ErrorCode::Lock, "this mesh is not locked, so that nobody waits for a signature"));
        };
        let Some(record) = self.world.nodes.get(name).cloned() else {
            let text = format!("there is no node `{name}`; see mesh-coordinator nodes");
            return Err(Refused::new(ErrorCode::UnknownNode, text));
        };
        self.check_signature(name, &record, &key, &signature)?;
        let record = NodeRecord { countersigned: Some(signature), ..NodeRecord::clone(&record) };
        Arc::make_mut(&mut self.world).insert_node(name.clone(), record);
        Ok(())
    }

    fn check_signature(
        &self,
        name: &NodeName,
        record: &NodeRecord,
        key: &IdentityKey,
        signature: &Signature,
    ) -> Result<(), Refused> {
        let member = record.member(name);
        if member.is_some_and(|member| member.is_by(&self.world.mesh.name, key, signature, verify)) {
            return Ok(());
        }
        let text = format!(
            "the signature for node {name} is not that of the lock {key}, or that node was altered meanwhile; run the same again"
        );
        Err(Refused::new(ErrorCode::Lock, text))
    }
}
