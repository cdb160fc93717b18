//! Configuration: texts from flags, environment and file become one resolved [`Plan`], or the list of everything
//! that is wrong with them.
//!
//! Flags beat environment, environment beats file, file beats defaults. A key `table.key` is the variable
//! `BOOTSTORM_TABLE_KEY`; lists are written there with commas. Unknown keys are mistakes.
#![forbid(unsafe_code)]

mod keys;
mod plan;
mod read;
pub mod values;

use std::collections::BTreeMap;
use std::path::Path;

pub use keys::{EXAMPLE, KEYS, Key};
pub use plan::{
    AdminPlan, DhcpMode, DhcpPlan, Driver, Frames, HttpPlan, HttpsPlan, LoaderPlan, Plan, ReservationPlan,
    ReservedWho, Sandbox, ServerPlan, SubnetPlan, TftpPlan, ZeroCopy,
};
pub use read::{Entry, Origin, Problem, Problems, Value};

/// What a command line brings along.
#[derive(Clone, Debug, Default)]
pub struct Sources<'a> {
    /// The file's name for messages, and its text.
    pub file: Option<(String, String)>,
    /// The environment, or what of it begins with `BOOTSTORM_`.
    pub environment: Vec<(String, String)>,
    /// Key, flag name, value.
    pub flags: Vec<(&'a str, &'a str, Value)>,
}

/// A loaded configuration: the plan, and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to do.
    pub plan: Plan,
    /// Every key in table order, with the value in force.
    pub effective: Vec<(&'static str, Entry)>,
    /// Every key of the lists of tables, such as `dhcp.subnet[1].network`, with the value in force.
    pub listed: Vec<(String, Entry)>,
}

/// Where the file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/bootstorm/bootstorm.toml";

/// Reads a file for [`Sources::file`].
///
/// # Errors
/// One problem naming the file and the cause.
pub fn read_file(path: &Path) -> Result<(String, String), Problems> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(error) => Err(Problems(vec![Problem {
            origin: Origin::File { file: path.display().to_string(), line: 0 },
            key: String::new(),
            found: match error.kind() {
                std::io::ErrorKind::NotFound => "no such file".into(),
                std::io::ErrorKind::PermissionDenied => "a file this user may not read".into(),
                std::io::ErrorKind::IsADirectory => "a folder".into(),
                std::io::ErrorKind::InvalidData => "a file that is not UTF-8 text".into(),
                _ => error.to_string(),
            },
            expected: "a readable file (`bootstorm config example` prints one to start from)".into(),
        }])),
    }
}

/// Resolves all layers.
///
/// # Errors
/// Every mistake of every layer at once.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let layer = match &sources.file {
        Some((name, text)) => read::read(name, text, &mut problems),
        None => read::FileLayer::default(),
    };
    keys::check_names(&layer, &mut problems);
    let mut effective: BTreeMap<&'static str, Entry> = BTreeMap::new();
    for key in KEYS {
        let flag = sources.flags.iter().find(|(path, ..)| *path == key.path).map(|(_, name, value)| Entry {
            value: value.clone(),
            origin: Origin::Flag { name: (*name).to_owned() },
        });
        let variable = key.variable();
        let environment =
            sources.environment.iter().find(|(name, _)| *name == variable).map(|(name, text)| Entry {
                value: key.value_of_text(text),
                origin: Origin::Environment { name: name.clone() },
            });
        let entry = flag
            .or(environment)
            .or_else(|| layer.entries.get(key.path).cloned())
            .unwrap_or_else(|| Entry { value: key.default(), origin: Origin::Default });
        effective.insert(key.path, entry);
    }
    for (name, text) in &sources.environment {
        if name.starts_with("BOOTSTORM_")
            && !KEYS.iter().any(|key| key.variable() == *name)
            && !keys::is_other_variable(name)
        {
            let word = |name: &str| name.strip_prefix("BOOTSTORM_").unwrap_or_default().to_owned();
            let asked = word(name);
            let is_like = |variable: &String| asked.len() >= 3 && word(variable).contains(&asked);
            let alike: Vec<String> = KEYS.iter().map(keys::Key::variable).filter(is_like).take(3).collect();
            problems.push(Problem {
                origin: Origin::Environment { name: name.clone() },
                key: String::new(),
                found: format!("{text:?} in a variable no key has"),
                expected: match alike.is_empty() {
                    true => "BOOTSTORM_TABLE_KEY, for example BOOTSTORM_SERVER_STATE_DIR".into(),
                    false => alike.join(" or "),
                },
            });
        }
    }
    let plan = plan::build(&effective, &layer.lists, &mut problems);
    if problems.is_empty() {
        let effective = KEYS.iter().filter_map(|key| Some((key.path, effective.remove(key.path)?))).collect();
        let tables = layer.lists.into_iter().flat_map(|(path, list)| {
            (1..).zip(list).map(move |(n, (_, table))| (format!("{path}[{n}]"), table))
        });
        let listed = tables
            .flat_map(|(name, table)| {
                table.into_iter().map(move |(key, entry)| (format!("{name}.{key}"), entry))
            })
            .collect();
        Ok(Loaded { plan, effective, listed })
    } else {
        problems.sort_by_key(|problem| match &problem.origin {
            Origin::File { line, .. } => (0, *line),
            _ => (1, 0),
        });
        problems.dedup();
        Err(Problems(problems))
    }
}

#[cfg(test)]
mod tests;
