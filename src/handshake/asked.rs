//! What is asked for, by an upgrade or by any other request.

use super::fields::Fields;

/// What a request asks for that is forwarded, be it an upgrade or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// Path and query.
    pub(crate) target: &'a str,
    /// Host and port that the client addresses; `None` where HTTP/1.0 tells none.
    pub(crate) authority: Option<&'a str>,
    /// Fields as sent.
    pub(crate) fields: &'a Fields<'a>,
}
