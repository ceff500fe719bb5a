//! Tables of the configuration text, and the places of their faults in it.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::settings::Invalid;

/// A fault of a configuration, and its place.
///
/// Its text is `line: key: problem`; the program puts the file's name before it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// Line, counted from 1; `None` where the fault has no place, as when there is no section.
    pub line: Option<usize>,
    /// Key at fault, if it is one.
    pub key: Option<String>,
    /// Problem: the value found, the values allowed, the mend.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "{line}: ")?;
        }
        if let Some(key) = &self.key {
            write_escaped(f, key)?;
            f.write_str(": ")?;
        }
        write_escaped(f, &self.problem)
    }
}

/// Writes text of the configuration so that it stays on its line, and steers no terminal.
fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for character in text.chars() {
        if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
            write!(f, "{}", character.escape_debug())?;
        } else {
            f.write_char(character)?;
        }
    }
    Ok(())
}

impl std::error::Error for ConfigError {}

/// A table of ours in the text.
pub(super) struct Table<'t, 'i> {
    value: &'t Spanned<DeValue<'i>>,
    keys: &'t DeTable<'i>,
    /// Header, as errors name it.
    header: &'static str,
    source: SourceText<'t>,
}

impl<'t, 'i> Table<'t, 'i> {
    /// Takes the value of a key as a table.
    ///
    /// # Errors
    ///
    /// A value of another type.
    pub(super) fn new(
        value: &'t Spanned<DeValue<'i>>,
        key: &str,
        header: &'static str,
        source: SourceText<'t>,
    ) -> Result<Self, ConfigError> {
        match value.get_ref() {
            DeValue::Table(keys) => Ok(Self { value, keys, header, source }),
            other => {
                let problem =
                    format!("must be a table, but is of type {}: write {header}", other.type_str());
                Err(source.error(value.span().start, Some(key), problem))
            }
        }
    }

    /// Takes the value of a key of this table as a table, if it is given.
    ///
    /// # Errors
    ///
    /// A value of another type.
    pub(super) fn nested(
        &self,
        key: &str,
        header: &'static str,
    ) -> Result<Option<Self>, ConfigError> {
        let value = entry(self.keys, key).map(|(_, value)| value);
        value.map(|value| Table::new(value, key, header, self.source)).transpose()
    }

    /// Reads the table into a type that has these keys.
    ///
    /// # Errors
    ///
    /// The first unknown key, or else a value of a wrong type.
    pub(super) fn read<T: Deserialize<'i>>(&self, known: &[&str]) -> Result<T, ConfigError> {
        self.refuse_unknown(known)?;
        T::deserialize(self.value.clone().into_deserializer()).map_err(|error| {
            // The error has a place in the text, and the key is the one whose value is there.
            let at = error.span().unwrap_or_default().start;
            let faulty = self.keys.iter().find(|(_, value)| value.span().contains(&at));
            self.source.toml_error(&error, faulty.map(|(name, _)| name.get_ref().as_ref()))
        })
    }

    fn refuse_unknown(&self, known: &[&str]) -> Result<(), ConfigError> {
        let unknown = self.keys.keys().filter(|name| !known.contains(&name.get_ref().as_ref()));
        let Some(name) = unknown.min_by_key(|name| name.span().start) else { return Ok(()) };
        let problem = match nearest(name.get_ref(), known) {
            Some(key) => format!("unknown key; did you mean {key}?"),
            None => format!("unknown key; the keys of {} are {}", self.header, known.join(", ")),
        };
        Err(self.source.error(name.span().start, Some(name.get_ref()), problem))
    }

    /// Places the error of a setting at the element of the list, the key, or else the table.
    pub(super) fn invalid(&self, Invalid { key, index, problem }: Invalid) -> ConfigError {
        let at = index.map_or_else(|| self.at(key), |index| self.element_at(key, index));
        self.source.error(at, Some(key), problem)
    }

    /// Returns the offset of an element of a key's list or table, that of the key where there is no
    /// such element.
    pub(super) fn element_at(&self, key: &str, index: usize) -> usize {
        let element = self.keys.get(key).and_then(|value| match value.get_ref() {
            DeValue::Array(elements) => elements.get(index).map(Spanned::span),
            DeValue::Table(entries) => entries.keys().nth(index).map(Spanned::span),
            _ => None,
        });
        element.map_or_else(|| self.at(key), |span| span.start)
    }

    /// Returns the offset of a key in the text, that of the table where the key is missing.
    pub(super) fn at(&self, key: &str) -> usize {
        entry(self.keys, key).map_or(self.value.span().start, |(name, _)| name.span().start)
    }
}

/// Returns a key, with its place in the text, and its value.
pub(super) fn entry<'t, 'i>(
    table: &'t DeTable<'i>,
    key: &str,
) -> Option<(&'t Spanned<Cow<'i, str>>, &'t Spanned<DeValue<'i>>)> {
    table.iter().find(|(name, _)| name.get_ref() == key)
}

/// Returns the known key that an unknown one is a likely misspelling of.
fn nearest<'k>(unknown: &str, known: &[&'k str]) -> Option<&'k str> {
    let unknown = unknown.to_ascii_lowercase().replace('-', "_");
    let close = known.iter().map(|key| (strsim::damerau_levenshtein(&unknown, key), *key));
    let (distance, key) = close.min()?;
    // With more than a quarter of its letters wrong it is another word.
    (distance <= 1 + key.len() / 4).then_some(key)
}

/// The text of the configuration, which gives errors their lines.
#[derive(Clone, Copy)]
pub(super) struct SourceText<'t>(pub(super) &'t str);

impl SourceText<'_> {
    pub(super) fn line(self, at: usize) -> usize {
        self.0.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
    }

    pub(super) fn error(
        self,
        at: usize,
        key: Option<&str>,
        problem: impl Into<String>,
    ) -> ConfigError {
        let line = Some(self.line(at));
        ConfigError { line, key: key.map(str::to_owned), problem: problem.into() }
    }

    pub(super) fn toml_error(self, error: &toml::de::Error, key: Option<&str>) -> ConfigError {
        // The parser marks the key, but does not name it.
        let is_twice = error.message() == "duplicate key";
        let twice = error.span().filter(|_| is_twice).and_then(|span| self.0.get(span));
        let key = key.or(twice);
        // Some messages of the parser have several lines; an error of ours has one.
        let mut problem = error.message().trim().replace('\n', ", ");
        // They name Rust's types, where TOML has words of its own.
        for (rust, toml) in [("expected i64", "expected an integer"), ("a sequence", "an array")] {
            if let Some(start) = problem.strip_suffix(rust) {
                problem = format!("{start}{toml}");
            }
        }
        for (rust, toml) in [("unknown variant", "unknown value"), ("unknown field", "unknown key")]
        {
            if let Some(rest) = problem.strip_prefix(rust) {
                problem = format!("{toml}{rest}");
            }
        }
        // What TOML's own type does not hold.
        let large = ["i128", "u128"].into_iter().find_map(|rust| {
            let number = problem.strip_suffix(&format!(" as {rust}, expected an integer"))?;
            number.strip_prefix("invalid type: integer ")
        });
        if let Some(number) = large {
            problem = format!("{number} is out of range: a number has at most 64 bits");
        }
        let line = error.span().map(|span| self.line(span.start));
        ConfigError { line, key: key.map(str::to_owned), problem }
    }
}
