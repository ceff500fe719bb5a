//! The answers of a backend after which another one is asked.

use crate::digits;

/// Answers to retry on; the key `retry_on` of a section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetryOn {
    statuses: Vec<u16>,
    bad_answer: bool,
}

impl RetryOn {
    /// Reads statuses from 500 to 599, and `bad_answer`.
    ///
    /// # Errors
    ///
    /// The place of the first other word, and the fault.
    pub(crate) fn parse(words: &[String]) -> Result<Self, (usize, String)> {
        let mut retry_on = Self::default();
        for (index, word) in words.iter().enumerate() {
            match (word.as_str(), digits::number(word)) {
                ("bad_answer", _) => retry_on.bad_answer = true,
                (_, Some(status @ 500..=599)) => retry_on.statuses.push(status),
                _ => {
                    let problem = format!(
                        "{word:?} is no answer to retry on: write bad_answer, or a status from \
                         500 to 599"
                    );
                    return Err((index, problem));
                }
            }
        }
        Ok(retry_on)
    }

    /// Returns whether another backend is asked after this status.
    pub(crate) fn has_status(&self, status: u16) -> bool {
        self.statuses.contains(&status)
    }

    /// Returns whether another backend is asked after an answer that is invalid.
    pub(crate) fn has_bad_answer(&self) -> bool {
        self.bad_answer
    }
}
