//! Sentences for the operator by topic, for what has no place of its own: a topic has one sentence at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::warning_id::WarningId;

/// The sentences. Clones share them; posting never waits for a reader.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<BTreeMap<WarningId, String>>>);

impl Notes {
    /// Posts the sentence of a topic, or takes it down.
    pub fn set(&self, topic: WarningId, sentence: Option<String>) {
        match sentence {
            Some(sentence) => self.lock().insert(topic, sentence),
            None => self.lock().remove(&topic),
        };
    }

    /// Returns the sentences posted with their topics, in the order of these.
    pub fn all(&self) -> Vec<(WarningId, String)> {
        self.lock().iter().map(|(topic, sentence)| (*topic, sentence.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WarningId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
