//! The layers a value can come from, and what is said when one of them makes no sense.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File {
        /// As it was named.
        file: String,
        /// Counted from 1; 0 is the file as a whole.
        line: usize,
    },
    /// A variable of the environment.
    Environment {
        /// Its name.
        name: String,
    },
    /// A flag of the command line.
    Flag {
        /// With its dashes.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: 0 } => f.write_str(file),
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Environment { name } => write!(f, "environment {name}"),
            Self::Flag { name } => write!(f, "flag {name}"),
        }
    }
}

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// The key, with its table: `dhcp.mode`, `dhcp.subnet[2].range`. Empty when the text is no TOML.
    pub key: String,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

/// Every mistake of a configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A value as written.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A truth value.
    Bool(bool),
    /// A list of texts.
    List(Vec<String>),
    /// Anything that no key takes, for the message.
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => number.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::List(list) => write!(f, "{list:?}"),
            Self::Other(word) => f.write_str(word),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// Its place.
    pub origin: Origin,
}

/// The file, flattened: `table.key` to value, and the tables of each list of tables.
#[derive(Clone, Debug, Default)]
pub(super) struct FileLayer {
    /// Plain keys.
    pub(super) entries: BTreeMap<String, Entry>,
    /// `dhcp.subnet` and `dhcp.reservation`: each table's keys, and its own place.
    pub(super) lists: BTreeMap<String, Vec<(Origin, BTreeMap<String, Entry>)>>,
    /// Tables with nothing in them.
    pub(super) empty: BTreeMap<String, Origin>,
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    layer: FileLayer,
    problems: &'a mut Vec<Problem>,
}

/// Reads a file's text. Syntax errors are problems like all others; what could be read is read on.
pub(super) fn read(file: &str, text: &str, problems: &mut Vec<Problem>) -> FileLayer {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { file, text, layer: FileLayer::default(), problems };
    for error in errors {
        let origin = reader.origin(error.span().map_or(0, |span| span.start));
        let line = match &origin {
            Origin::File { line, .. } => text.lines().nth(line - 1).unwrap_or_default().trim().to_owned(),
            _ => String::new(),
        };
        let expected =
            format!("valid TOML ({})", error.message().split_whitespace().collect::<Vec<_>>().join(" "));
        reader.problems.push(Problem { origin, key: String::new(), found: format!("{line:?}"), expected });
    }
    reader.table("", table.get_ref());
    reader.layer
}

impl Reader<'_> {
    fn origin(&self, at: usize) -> Origin {
        let before = self.text.get(..at).unwrap_or(self.text);
        Origin::File { file: self.file.to_owned(), line: before.matches('\n').count() + 1 }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            let origin = self.origin(key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) if inner.is_empty() => {
                    self.layer.empty.insert(path, origin);
                }
                DeValue::Table(inner) => self.table(&path, inner),
                DeValue::Array(array) if is_list_of_tables(array) => {
                    let tables = array
                        .iter()
                        .filter_map(|item| match item.get_ref() {
                            DeValue::Table(inner) => Some((self.origin(item.span().start), self.flat(inner))),
                            _ => None,
                        })
                        .collect();
                    self.layer.lists.insert(path, tables);
                }
                other => {
                    let entry = Entry { value: plain(other), origin };
                    self.layer.entries.insert(path, entry);
                }
            }
        }
    }

    fn flat(&self, table: &DeTable<'_>) -> BTreeMap<String, Entry> {
        table
            .iter()
            .map(|(key, value)| {
                let entry = Entry { value: plain(value.get_ref()), origin: self.origin(key.span().start) };
                (key.get_ref().to_string(), entry)
            })
            .collect()
    }
}

fn is_list_of_tables(array: &[Spanned<DeValue<'_>>]) -> bool {
    !array.is_empty() && array.iter().all(|item| matches!(item.get_ref(), DeValue::Table(_)))
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => {
            number.to_string().parse().map_or(Value::Other("a number too large"), Value::Integer)
        }
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Array(array) => {
            let texts: Option<Vec<String>> = array
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Some(text.to_string()),
                    _ => None,
                })
                .collect();
            texts.map_or(Value::Other("a list of something other than texts"), Value::List)
        }
        DeValue::Float(_) => Value::Other("a fractional number"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Table(_) => Value::Other("a table"),
    }
}
