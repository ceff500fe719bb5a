//! `GET /config` and `POST /reload`: the configuration, and how it is replaced.

use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use super::call::Call;
use super::reply::Reply;

/// A reload under way: lines to be told of its success, or its error.
pub(super) type Reloading = Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send>>;

/// What the owner of the listener lets it tell and do.
#[derive(Default)]
pub(super) struct Configuration {
    /// Text of the configuration in force.
    text: Mutex<Option<String>>,
    /// Begins a reload.
    reload: Option<Box<dyn Fn() -> Reloading + Send + Sync>>,
}

impl Configuration {
    pub(super) fn set_text(&self, text: String) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    pub(super) fn set_reload(&mut self, reload: Box<dyn Fn() -> Reloading + Send + Sync>) {
        self.reload = Some(reload);
    }

    fn text(&self) -> Option<String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configuration").field("text", &self.text).finish_non_exhaustive()
    }
}

/// `GET /config`: the configuration in force, with all defaults.
pub(super) async fn config(call: Call<'_>) -> Reply {
    match call.site.configuration.text() {
        Some(text) => Reply::ok("application/toml", text),
        None => Reply::error(404, "this program has not told its configuration"),
    }
}

/// `POST /reload`: replaces the configuration; 422 with the error where it stays as it was.
pub(super) async fn reload(call: Call<'_>) -> Reply {
    let Some(reload) = &call.site.configuration.reload else {
        return Reply::error(422, "this program cannot be reloaded: restart it");
    };
    match reload().await {
        Ok(lines) => {
            Reply::text(200, &["reloaded".to_owned()].into_iter().chain(lines).collect::<Vec<_>>())
        }
        Err(error) => Reply::error(422, error),
    }
}
