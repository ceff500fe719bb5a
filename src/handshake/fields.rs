//! Header fields of one head, in their order, with their bytes.

/// One header line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    /// Name as sent.
    pub(crate) name: &'a str,
    /// Value without the white space around it.
    pub(crate) value: &'a [u8],
    /// Line as sent, without its CRLF.
    pub(crate) line: &'a [u8],
}

impl Field<'_> {
    /// Returns whether the field has this name, in any letter case (RFC 9110, 5.1).
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Returns whether the field is the same variable of CGI as this name.
    pub(crate) fn is_same_variable(&self, name: &str) -> bool {
        is_same_variable(self.name, name)
    }
}

/// All fields of a head.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a>(Vec<Field<'a>>);

impl<'a> Fields<'a> {
    /// Joins the fields that `httparse` found in `head` with the lines that they stand in.
    ///
    /// `head` has passed [`HeadScan`](super::scan::HeadScan), so that each line is one field.
    /// `None` if the two ever disagree about that.
    pub(crate) fn new(head: &'a [u8], parsed: &[httparse::Header<'a>]) -> Option<Self> {
        let head = head.strip_prefix(b"\r\n").unwrap_or(head);
        let mut lines = head.split(|&byte| byte == b'\n').skip(1);
        let fields: Vec<Field<'a>> = parsed
            .iter()
            .map(|header| {
                let line = lines.next()?.strip_suffix(b"\r")?;
                line.starts_with(header.name.as_bytes()).then_some(Field {
                    name: header.name,
                    value: header.value,
                    line,
                })
            })
            .collect::<Option<_>>()?;
        // The blank line follows the last field, and nothing follows the blank line.
        (lines.next() == Some(b"\r") && lines.next() == Some(b"")).then_some(Self(fields))
    }

    /// Returns all fields, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Field<'a>> {
        self.0.iter()
    }

    /// Returns the values of all fields with this name.
    pub(crate) fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.0.iter().filter(move |field| field.is(name)).map(|field| field.value)
    }

    /// Returns the only value of this name: `Err` with their number if there are none or several.
    pub(crate) fn single(&self, name: &str) -> Result<&'a [u8], usize> {
        let mut values = self.values(name);
        match (values.next(), values.count()) {
            (Some(value), 0) => Ok(value),
            (first, more) => Err(usize::from(first.is_some()) + more),
        }
    }

    /// Returns the only value of this name, if it is text.
    pub(crate) fn single_text(&self, name: &str) -> Option<&'a str> {
        std::str::from_utf8(self.single(name).ok()?).ok()
    }

    /// Returns the elements of a comma-separated list over all lines of this name, without empty
    /// ones (RFC 9110, 5.6.1.2).
    pub(crate) fn list<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.values(name).flat_map(elements)
    }

    /// Returns whether the list of this name has this token, in any letter case.
    pub(crate) fn lists(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// Returns whether two names are one variable of CGI (RFC 3875, 4.1.18). CGI, WSGI and Rack take
/// `_` for `-`, so that a name with the one would stand for that with the other.
pub(super) fn is_same_variable(one: &str, other: &str) -> bool {
    let variable = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.bytes().map(variable).eq(other.bytes().map(variable))
}

/// Returns the elements of one list value. A comma within a quoted string does not separate (RFC
/// 9110, 5.6.4).
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    value
        .split(move |&byte| {
            if escaped {
                escaped = false;
                return false;
            }
            match byte {
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            byte == b',' && !quoted
        })
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::http::RequestHead;

    fn list(value: &str) -> Vec<&str> {
        elements(value.as_bytes()).map(|element| std::str::from_utf8(element).unwrap()).collect()
    }

    #[test]
    fn lists_split_at_commas_outside_quotes() {
        assert_eq!(list("keep-alive, Upgrade"), ["keep-alive", "Upgrade"]);
        assert_eq!(list(" ,, a ,\t,b, "), ["a", "b"]);
        assert_eq!(list(r#"x; y="1,2", z"#), [r#"x; y="1,2""#, "z"]);
        assert_eq!(list(r#"x; y="1\",2", z"#), [r#"x; y="1\",2""#, "z"]);
        assert!(list(" , ").is_empty());
    }

    #[test]
    fn fields_keep_their_lines() {
        let head = b"GET / HTTP/1.1\r\nHost:  a \r\nhost:b\r\nX:\r\n\r\n";
        let fields = RequestHead::parse(head).unwrap().fields;
        let lines: Vec<&[u8]> = fields.iter().map(|field| field.line).collect();
        assert_eq!(lines, [&b"Host:  a "[..], b"host:b", b"X:"]);
        assert_eq!(fields.single("HOST"), Err(2));
        assert_eq!(fields.single("none"), Err(0));
        assert_eq!(fields.single("x"), Ok(&b""[..]));
        assert_eq!(fields.values("host").collect::<Vec<_>>(), [b"a", b"b"]);
    }
}
