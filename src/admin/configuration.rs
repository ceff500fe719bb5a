//! The configuration as the owner of the listener lets it be told and replaced.

use std::fmt;
use std::pin::Pin;
use std::sync::Mutex;

use crate::lock::lock;

/// A reload under way: lines to be told of its success, or its error.
pub(super) type Reloading = Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send>>;

/// What the owner of the listener lets it tell and do.
#[derive(Default)]
pub(super) struct Configuration {
    /// Text of the configuration in force.
    text: Mutex<Option<String>>,
    /// Begins a reload.
    pub(super) reload: Option<Box<dyn Fn() -> Reloading + Send + Sync>>,
}

impl Configuration {
    pub(super) fn set_text(&self, text: String) {
        *lock(&self.text) = Some(text);
    }

    pub(super) fn set_reload(&mut self, reload: Box<dyn Fn() -> Reloading + Send + Sync>) {
        self.reload = Some(reload);
    }

    pub(super) fn text(&self) -> Option<String> {
        lock(&self.text).clone()
    }
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configuration").field("text", &self.text).finish_non_exhaustive()
    }
}
