//! An error in a configuration file, and its place.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::store::with_shown_urls;

/// How similar two spellings must be, from 0 to 1, for one to be suggested for the other.
const ALIKE: f64 = 0.7;

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; nothing for the file as a whole.
    pub line: Option<usize>,
    /// The key, with dots between its parts; may be empty.
    pub key: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// The text of a configuration file, for finding the places of errors.
pub(super) struct ConfigText<'a> {
    file: &'a Path,
    text: &'a str,
    table: Option<Spanned<DeTable<'a>>>,
}

impl<'a> ConfigText<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            text,
            table: DeTable::parse(text).ok(),
        }
    }

    /// An error of the TOML reader.
    pub(super) fn of_toml(&self, error: &toml::de::Error) -> ConfigProblem {
        let span = error.span();
        let key = match (&span, &self.table) {
            (Some(span), Some(table)) => key_at(table.get_ref(), span),
            _ => Vec::new(),
        };
        ConfigProblem {
            file: self.file.to_owned(),
            line: span.map(|span| self.line(span.start)),
            key: key.join("."),
            what: with_shown_urls(&with_suggestion(error.message())),
        }
    }

    /// An error in the value of `key`.
    pub(super) fn at(&self, key: &[&str], what: impl Into<String>) -> ConfigProblem {
        let span = self
            .table
            .as_ref()
            .and_then(|table| find(table.get_ref(), key));
        ConfigProblem {
            file: self.file.to_owned(),
            line: span.map(|span| self.line(span.start)),
            key: key.join("."),
            what: what.into(),
        }
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        before.filter(|&&byte| byte == b'\n').count() + 1
    }
}

/// The most mistakes that are reported of a file.
const MOST: usize = 100;

/// Reads a value from TOML; gives every mistake in it.
///
/// The reader stops at the first mistake. So the lines of a mistake are blanked, and the rest is read again.
/// What is then missing where something was blanked is no mistake of the file.
pub(super) fn read<T: DeserializeOwned>(
    text: &str,
    source: &ConfigText<'_>,
) -> Result<T, Vec<ConfigProblem>> {
    let in_order = |mut problems: Vec<ConfigProblem>| {
        problems.sort_by_key(|problem| problem.line);
        problems
    };
    let mut problems = Vec::new();
    let mut rest = text.to_owned();
    loop {
        let error = match toml::from_str(&rest) {
            Ok(value) if problems.is_empty() => return Ok(value),
            Ok(_) => return Err(in_order(problems)),
            Err(error) => error,
        };
        let missing = error.message().starts_with("missing field");
        if !missing || problems.is_empty() {
            problems.push(source.of_toml(&error));
        }
        let blanked = error.span().and_then(|span| blanked(&rest, &span));
        match blanked {
            Some(blanked) if !missing && problems.len() < MOST => rest = blanked,
            _ => return Err(in_order(problems)),
        }
    }
}

/// The text without the lines of `span`, or without the table whose header it is in; nothing if that is no
/// TOML.
fn blanked(text: &str, span: &Range<usize>) -> Option<String> {
    let start = text.get(..span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let is_header = text[start..].trim_start().starts_with('[');
    let end = match is_header {
        true => text[start..].find("\n[").map(|at| start + at),
        false => {
            let last = span.end.saturating_sub(1).max(span.start);
            text.get(last..)?.find('\n').map(|at| last + at)
        }
    };
    let end = end.unwrap_or(text.len());
    let blank: String = text[start..end]
        .bytes()
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect();
    let blanked = format!("{}{blank}{}", &text[..start], &text[end..]);
    let changed = blanked != text && DeTable::parse(&blanked).is_ok();
    changed.then_some(blanked)
}

/// Where `key` stands; where a part of it is missing, what comes before that part.
fn find(table: &DeTable<'_>, key: &[&str]) -> Option<Range<usize>> {
    let (first, rest) = key.split_first()?;
    let (name, value) = table.iter().find(|(name, _)| *name.get_ref() == *first)?;
    let below = value
        .get_ref()
        .as_table()
        .and_then(|table| find(table, rest));
    below.or_else(|| Some(name.span()))
}

/// The key whose name or value is at `span`.
fn key_at(table: &DeTable<'_>, span: &Range<usize>) -> Vec<String> {
    for (name, value) in table.iter() {
        if name.span().contains(&span.start) {
            return vec![name.get_ref().to_string()];
        }
        let below = match value.get_ref() {
            DeValue::Table(below) => key_at(below, span),
            _ => Vec::new(),
        };
        if !below.is_empty() || value.span().contains(&span.start) {
            let mut key = vec![name.get_ref().to_string()];
            key.extend(below);
            return key;
        }
    }
    Vec::new()
}

/// Adds the nearest right spelling to serde's list of the right ones.
fn with_suggestion(message: &str) -> String {
    let Some((wrong, expected)) = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))
        .and_then(|rest| rest.split_once('`'))
    else {
        return message.to_owned();
    };
    let right: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    match nearest(wrong, &right) {
        Some(nearest) => format!("{wrong:?} is not known here; did you mean {nearest:?}?"),
        None => format!(
            "{wrong:?} is not known here; known are {}",
            right.join(", ")
        ),
    }
}

/// The member of `right` that `wrong` most likely means.
pub(super) fn nearest<'a>(wrong: &str, right: &[&'a str]) -> Option<&'a str> {
    let score = |right: &str| {
        let alike = strsim::jaro_winkler(wrong, right);
        // In a short word one typing error changes much.
        match strsim::damerau_levenshtein(wrong, right) {
            1 => alike.max(ALIKE),
            _ => alike,
        }
    };
    let alike = right.iter().map(|right| (score(right), *right));
    let best = alike.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= ALIKE).then_some(best.1)
}
