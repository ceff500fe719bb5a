//! `GET /`: the page for people.

use super::call::Call;
use super::reply::Reply;

/// The page: one file, with its style and its script.
const PAGE: &str = include_str!("page.html");

/// Content security policy (CSP Level 3): nothing but what stands in the page runs or shows, and it
/// asks nobody but this listener. A test compares the hashes with the page.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-YoBb0wH8vFwOjnIoOZQVS+o23oQWspVSzP3C7sBlJKE='; \
    style-src 'sha256-bGborr8fPiIafAyqWkIakVXZqXyMs1PbtYJ7dmZXGHY='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`.
pub(super) async fn page(_: Call<'_>) -> Reply {
    Reply::ok("text/html; charset=utf-8", PAGE)
        .with("Content-Security-Policy", POLICY)
        .with("Referrer-Policy", "no-referrer")
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Returns the text between the only two tags of this name.
    fn text_of(name: &str) -> &'static str {
        let (_, rest) = PAGE.split_once(&format!("<{name}>")).expect(name);
        let (text, rest) = rest.split_once(&format!("</{name}>")).expect(name);
        assert!(!rest.contains(&format!("<{name}")), "more than one {name}");
        text
    }

    #[test]
    fn the_policy_has_the_hashes_of_style_and_script() {
        for (directive, name) in [("script-src", "script"), ("style-src", "style")] {
            let hash = BASE64.encode(&Sha256::digest(text_of(name)));
            let expected = format!("{directive} 'sha256-{hash}';");
            assert!(POLICY.contains(&expected), "write {expected}");
        }
    }

    #[test]
    fn the_page_is_small_and_names_no_other_place() {
        assert!(PAGE.len() <= 33 * 1_024, "{} bytes", PAGE.len());
        let own = PAGE.replace("http://www.w3.org/2000/svg", "");
        for part in ["//", "style=", " on", "src=", "innerHTML", "outerHTML", "insertAdjacent"] {
            // An attribute follows a name or a quote; prose may have the same letters.
            let is_found = match part {
                " on" => own.split(" on").skip(1).any(|rest| {
                    let name = rest.split('=').next().unwrap_or_default();
                    rest.contains('=') && name.bytes().all(|byte| byte.is_ascii_lowercase())
                }),
                _ => own.contains(part),
            };
            assert!(!is_found, "{part:?}");
        }
    }
}
