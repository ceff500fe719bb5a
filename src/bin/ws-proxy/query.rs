//! Request targets with a query.

/// Returns the path with a query of the pairs that have a value, percent-encoded.
pub(crate) fn target(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let given = pairs.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    let query: Vec<String> = given.map(|(key, value)| format!("{key}={}", encode(value))).collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

/// Percent-encodes everything but the unreserved characters (RFC 3986, 2.3).
fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_end_or_change_the_query() {
        let text = |value: &str| Some(value.to_owned());
        assert_eq!(target("/tunnels", &[("section", None)]), "/tunnels");
        assert_eq!(target("/tunnels", &[("section", text(""))]), "/tunnels?section=");
        let pairs = [("reason", text("a b+c&d=e#%é\r\n")), ("x", None), ("client", text("::1"))];
        assert_eq!(
            target("/tunnels/7", &pairs),
            "/tunnels/7?reason=a%20b%2Bc%26d%3De%23%25%C3%A9%0D%0A&client=%3A%3A1"
        );
        let plain = "AZaz09-._~";
        assert_eq!(encode(plain), plain);
    }
}
