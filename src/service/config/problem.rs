//! An error in a configuration file, and its place.

use std::collections::{BTreeMap, BTreeSet};
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
        ConfigProblem {
            file: self.file.to_owned(),
            line: error.span().map(|span| self.line(span.start)),
            key: self.key_of(error).join("."),
            what: with_shown_urls(&in_plain_words(error.message())),
        }
    }

    /// The key at which the TOML reader found an error.
    fn key_of(&self, error: &toml::de::Error) -> Vec<String> {
        match (error.span(), &self.table) {
            (Some(span), Some(table)) => key_at(table.get_ref(), &span),
            _ => Vec::new(),
        }
    }

    /// Whether the file has the key `field` in the table `key`.
    fn has(&self, key: &[String], field: &str) -> bool {
        let mut table = self.table.as_ref().map(|table| table.get_ref());
        for part in key {
            let below = table.and_then(|table| table.get(part.as_str()));
            table = below.and_then(|value| value.get_ref().as_table());
        }
        table.is_some_and(|table| table.contains_key(field))
    }

    /// The names of the tables of a section: `stores`, `mounts`.
    pub(super) fn names(&self, section: &str) -> Vec<String> {
        let table = self.table.as_ref();
        let section = table.and_then(|table| table.get_ref().get(section));
        let names = section.and_then(|section| section.get_ref().as_table());
        let names = names.into_iter().flat_map(|names| names.keys());
        names.map(|name| name.get_ref().to_string()).collect()
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

/// What was read of a file.
pub(super) struct ReadConfig<T> {
    /// The value of what could be read; nothing if that is not even TOML.
    pub(super) value: Option<T>,
    /// The mistakes that the TOML reader found.
    pub(super) problems: Vec<ConfigProblem>,
    /// The keys that it could not read.
    pub(super) unread: UnreadKeys,
}

/// The keys that could not be read, by the table that they are in: `mounts.m`.
#[derive(Default)]
pub(super) struct UnreadKeys(BTreeMap<String, BTreeSet<String>>);

impl UnreadKeys {
    /// Adds the key of a mistake, and the key that its author most likely meant.
    fn add(&mut self, key: &[String], what: &str) {
        let meant = what.rsplit_once("did you mean \"");
        let meant = meant.and_then(|(_, meant)| meant.split('"').next());
        let keys = self.0.entry(table_of(key)).or_default();
        keys.extend(key.iter().skip(2).cloned());
        keys.extend(meant.map(str::to_owned));
    }

    /// Whether all of the table was read.
    pub(super) fn is_complete(&self, table: &[&str]) -> bool {
        !self.0.contains_key(&table.join("."))
    }

    /// Whether a mistake follows from a key of its table that could not be read.
    pub(super) fn explains(&self, problem: &ConfigProblem) -> bool {
        self.0.iter().any(|(table, keys)| {
            let below = problem.key.strip_prefix(table.as_str());
            let Some(below) = below.and_then(|below| below.strip_prefix('.')) else {
                return false;
            };
            let is_named = |key: &String| {
                let quoted = problem.what.contains(&format!("`{key}`"));
                quoted || (key.contains('-') && problem.what.contains(key.as_str()))
            };
            below.split('.').any(|part| keys.contains(part)) || keys.iter().any(is_named)
        })
    }
}

/// The name of the table that `key` is in: its first two parts.
fn table_of(key: &[String]) -> String {
    key[..key.len().min(2)].join(".")
}

/// Reads a value from TOML, and every mistake in it.
///
/// The reader stops at the first mistake. So the lines of a mistake are blanked, and the rest is read again;
/// where a field is missing, its table is. What is then missing where something was blanked is no mistake of
/// the file.
pub(super) fn read<T: DeserializeOwned>(text: &str, source: &ConfigText<'_>) -> ReadConfig<T> {
    let mut problems: Vec<ConfigProblem> = Vec::new();
    let mut unread = UnreadKeys::default();
    let mut rest = text.to_owned();
    let value = loop {
        let error = match toml::from_str(&rest) {
            Ok(value) => break Some(value),
            Err(error) => error,
        };
        let key = source.key_of(&error);
        let problem = source.of_toml(&error);
        let field = error.message().strip_prefix("missing field `");
        let field = field.and_then(|rest| rest.split('`').next());
        let is_consequence = field.is_some_and(|field| {
            let unread = unread.0.get(&table_of(&key));
            source.has(&key, field) || unread.is_some_and(|keys| keys.contains(field))
        });
        unread.add(&key, &problem.what);
        let is_known =
            |other: &ConfigProblem| other.key == problem.key && other.what == problem.what;
        let is_repeated = field.is_some() && problems.iter().any(is_known);
        if !is_consequence && !is_repeated {
            problems.push(problem);
        }
        let blanked = error.span().and_then(|span| blanked(&rest, &span));
        match blanked {
            Some(blanked) if problems.len() < MOST => rest = blanked,
            _ => break None,
        }
    };
    ReadConfig {
        value,
        problems,
        unread,
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

/// serde's message, in words that a reader of the file knows.
fn in_plain_words(message: &str) -> String {
    let wrong = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, expected)) = wrong.and_then(|wrong| wrong.split_once(", expected ")) else {
        return with_suggestion(message);
    };
    let found = match found {
        "sequence" => "a list",
        "map" => "a table",
        found => found,
    };
    let expected = match expected {
        "a sequence" => "a list, as in [\"a\", \"b\"]",
        "a map" => "a table with keys below it",
        "a string" => "text in quotation marks",
        "a boolean" => "true or false",
        "u16" | "u32" | "u64" | "usize" | "a nonzero u32" => "a whole number",
        expected if expected.starts_with("struct ") => "a table with keys below it",
        expected => expected,
    };
    format!("{found} does not fit here: write {expected}")
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
