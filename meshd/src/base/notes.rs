//! Sentences for the operator by topic, for what has no place of its own: a topic has one sentence at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sentences. Clones share them; posting never waits for a reader.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Notes {
    /// Posts the sentence of a topic, or takes it down.
    pub fn set(&self, topic: &'static str, sentence: Option<String>) {
        match sentence {
            Some(sentence) => self.lock().insert(topic, sentence),
            None => self.lock().remove(topic),
        };
    }

    /// Returns the sentences posted, in the order of their topics.
    pub fn all(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
