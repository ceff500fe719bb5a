//! Numbers as protocols write them.

use std::str::FromStr;

/// Returns the number that a text of digits is; `None` for any other text, and for a number that is
/// out of range. The standard library's `parse` takes a sign, too, which no port and no length has.
pub(crate) fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_are_a_number() {
        assert_eq!(number("0065535"), Some(65_535_u16));
        for text in ["", "+1", "-1", " 1", "1 ", "x", "1x", "65536"] {
            assert_eq!(number::<u16>(text), None, "{text:?}");
        }
    }
}
