//! `GET /config` and `POST /reload`: the configuration, and how it is replaced.

use super::call::Call;
use super::reply::Reply;

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
