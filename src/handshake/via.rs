//! The way of a request, by which a loop is found (RFC 9110, 7.6.3).

use super::fields::Fields;

/// Name of this program in `Via`.
pub(super) const NAME: &str = "ws-proxy";

/// Returns how many times a request has come through this program, by the entries in its `Via`
/// fields.
pub(super) fn hops(fields: &Fields<'_>) -> usize {
    // An entry is a protocol, a name and, if need be, a comment. Split at every comma: a quote in a
    // comment must not hide what another proxy has joined to its line.
    let entries = fields.values("Via").flat_map(|value| value.split(|&byte| byte == b','));
    let is_ours = |entry: &&[u8]| {
        let mut words = entry.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|name| name.eq_ignore_ascii_case(NAME.as_bytes()))
    };
    entries.filter(is_ours).count()
}
