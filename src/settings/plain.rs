//! The settings of requests that are no upgrades.

use super::{Invalid, RawSection};

impl RawSection {
    pub(super) fn health_path(&self) -> Result<Option<String>, Invalid> {
        let Some(path) = self.health_path.as_deref() else { return Ok(None) };
        let is_path_byte = |byte: u8| byte.is_ascii_graphic() && byte != b'#' && byte != b'?';
        if path.starts_with('/') && path.bytes().all(is_path_byte) {
            return Ok(Some(path.to_owned()));
        }
        let problem = format!(
            "{path:?} is not a path: write one that begins with /, of visible ASCII without ? and \
             #, as in health_path = \"/healthz\""
        );
        Err(Invalid::new("health_path", problem))
    }
}
