//! House rules as tests: who may import whom, where unsafe lives, which licences dependencies may have.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a source folder is readable") {
        let path = entry.expect("a folder entry is readable").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn sources() -> Vec<(String, PathBuf, String)> {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    files
        .into_iter()
        .map(|path| {
            let below = path.strip_prefix(root().join("src")).expect("found below src");
            let room = below.components().next().expect("a file has a name").as_os_str().to_string_lossy();
            let room = room.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            (room, path, text)
        })
        .collect()
}

/// What stands before the tests at the bottom of a file.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

/// Room → rooms it may import. What is not listed is forbidden.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("sys", &[]),
    ("telemetry", &[]),
    ("tls", &[]),
    ("jobs", &["wire"]),
    ("proto", &["wire", "jobs"]),
    ("files", &["wire", "jobs", "sys"]),
    ("history", &["wire", "jobs"]),
    ("store", &[]),
    ("keeper", &["wire", "jobs", "store"]),
    ("engine", &["wire", "jobs", "proto", "files", "sys", "telemetry", "tls", "keeper"]),
    ("config", &["wire", "jobs"]),
    ("control", &["wire", "jobs", "files", "config", "telemetry", "sys", "history", "store", "keeper"]),
    ("client", &["wire"]),
    // Looks at everything the server stands on, and boots against it as a client; nothing of its engine.
    ("doctor", &["wire", "jobs", "files", "config", "client", "sys"]),
    // Rings and batches: a load through ordinary sockets is slower than what it measures.
    ("bench", &["wire", "client", "sys", "tls"]),
    (
        "cli",
        &[
            "wire",
            "jobs",
            "proto",
            "files",
            "engine",
            "config",
            "control",
            "telemetry",
            "tls",
            "history",
            "store",
            "keeper",
            "client",
            "bench",
            "doctor",
            "sys",
        ],
    ),
    ("lib", &[]),
    ("main", &[]),
];

#[test]
fn rooms_import_only_what_the_table_allows() {
    let table: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut offences = Vec::new();
    for (room, path, text) in sources() {
        // A room's tests may stand on the rooms below its neighbours: a store in memory under a keeper.
        if path.ends_with("tests.rs") {
            continue;
        }
        let allowed =
            table.get(room.as_str()).unwrap_or_else(|| panic!("src/{room} is not in the import table"));
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for part in code.split("crate::").skip(1) {
                let target: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // Barriers and pages are memory and no I/O, and the table that every core reads is made of them.
                let memory_alone =
                    path.starts_with(root().join("src/jobs/table")) && part.starts_with("sys::memory");
                if !target.is_empty()
                    && target != room
                    && !allowed.contains(&target.as_str())
                    && !memory_alone
                {
                    offences.push(format!("{}:{}: {room} imports {target}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(offences.is_empty(), "imports against the table:\n{}", offences.join("\n"));
}

#[test]
fn unsafe_lives_in_sys_and_the_job_table_alone() {
    let mut offences = Vec::new();
    for (room, path, text) in sources() {
        let is_room = path.ends_with(format!("{room}/mod.rs"));
        let forbids = text.contains("#![forbid(unsafe_code)]");
        if is_room && room == "jobs" {
            // Module by module there: the table's slots and their reclaiming are the exception.
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.windows(2) {
                let module = pair[1].strip_prefix("pub mod ").or_else(|| pair[1].strip_prefix("mod "));
                if module.is_some_and(|name| name != "table;") && pair[0] != "#[forbid(unsafe_code)]" {
                    offences.push(format!("{}: {} may be unsafe", path.display(), pair[1]));
                }
            }
        } else if is_room && room != "sys" && !forbids {
            offences.push(format!("{}: does not forbid unsafe code", path.display()));
        }
        // The models are tests alone, and lend memory to the model checker.
        let of_the_table = ["slots.rs", "reclaim.rs", "models.rs"];
        let may_allow =
            room == "sys" || of_the_table.iter().any(|file| path.ends_with(format!("src/jobs/table/{file}")));
        if text.contains("allow(unsafe_code)") && !may_allow {
            offences.push(format!("{}: allows unsafe code", path.display()));
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn pure_rooms_touch_no_socket_file_clock_or_randomness() {
    const FORBIDDEN: &[&str] = &[
        "std::fs",
        "std::net::Udp",
        "std::net::Tcp",
        "Instant::now",
        "SystemTime::now",
        "getrandom",
        "std::thread",
        "mio::",
        "tokio::",
        "libc::",
    ];
    let mut offences = Vec::new();
    for (room, path, text) in sources() {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let is_test = ["tests.rs", "simulation.rs", "quirks.rs", "cases.rs"].contains(&name.as_str());
        if !["wire", "jobs", "proto"].contains(&room.as_str()) || is_test {
            continue;
        }
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in FORBIDDEN {
                if code.contains(word) {
                    offences.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(offences.is_empty(), "not pure:\n{}", offences.join("\n"));
}

#[test]
fn library_types_stop_at_the_edge() {
    // Crate → rooms that may name it.
    const EDGES: &[(&str, &[&str])] = &[
        ("mio::", &["engine", "sys", "client", "bench"]),
        ("io_uring::", &["sys"]),
        ("socket2::", &["sys", "client", "bench"]),
        ("memmap2::", &["sys"]),
        ("libc::", &["sys"]),
        ("axum::", &["control"]),
        ("clap::", &["cli"]),
        ("toml::", &["config", "files"]),
        ("rusqlite::", &["store"]),
        ("rustls::", &["tls"]),
        ("rcgen::", &["tls"]),
    ];
    let mut offences = Vec::new();
    for (room, path, text) in sources() {
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (name, rooms) in EDGES {
                let named = code.match_indices(name).any(|(at, _)| {
                    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if named && !rooms.contains(&room.as_str()) {
                    offences.push(format!("{}:{}: {name}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(offences.is_empty(), "library types past their edge:\n{}", offences.join("\n"));
}

#[test]
fn nothing_unfinished_is_left_in_the_tree() {
    let marks = ["TODO", "FIXME", "XXX", "HACK", "todo!", "unimplemented!", "dbg!"];
    let mut offences = Vec::new();
    for (_, path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                offences.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn dependencies_have_allowed_licences() {
    const ALLOWED: &[&str] = &[
        "MIT",
        "MIT-0",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "CC0-1.0",
        "Unicode-3.0",
        "Unlicense",
    ];
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let mut offences = Vec::new();
    for package in metadata["packages"].as_array().expect("packages is a list") {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        if !expression_is_allowed(&licence, ALLOWED) {
            offences.push(format!("{name}: {licence:?}"));
        }
    }
    assert!(offences.is_empty(), "licences outside the list:\n{}", offences.join("\n"));
}

/// SPDX expressions as crates use them: OR of ANDs, parentheses around either.
fn expression_is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let split = |text: &str, word: &str| -> Vec<String> {
        let (mut parts, mut depth, mut current) = (Vec::new(), 0, String::new());
        for token in text.replace('(', " ( ").replace(')', " ) ").split_whitespace() {
            depth += match token {
                "(" => 1,
                ")" => -1,
                _ => 0,
            };
            if depth == 0 && token == word {
                parts.push(std::mem::take(&mut current));
            } else {
                current.push_str(token);
                current.push(' ');
            }
        }
        parts.push(current);
        parts.into_iter().map(|part| part.trim().to_owned()).collect()
    };
    split(expression, "OR").iter().any(|choice| {
        let all = split(choice, "AND");
        all.iter().all(|part| match part.strip_prefix("( ").and_then(|p| p.strip_suffix(" )")) {
            Some(inner) => expression_is_allowed(inner, allowed),
            None if all.len() == 1 && part != choice => expression_is_allowed(part, allowed),
            None => allowed.contains(&part.as_str()),
        })
    })
}

#[test]
fn licence_expressions_are_read_as_written() {
    let allowed = &["MIT", "ISC"];
    for good in
        ["MIT", "GPL-2.0 OR MIT", "MIT AND ISC", "(MIT OR GPL-2.0) AND ISC", "MIT OR (GPL-2.0 AND ISC)"]
    {
        assert!(expression_is_allowed(good, allowed), "{good}");
    }
    for bad in
        ["", "GPL-2.0", "MIT AND GPL-2.0", "(GPL-2.0 OR LGPL-3.0) AND ISC", "GPL-2.0 OR (MIT AND GPL-2.0)"]
    {
        assert!(!expression_is_allowed(bad, allowed), "{bad}");
    }
}

#[test]
fn every_counter_is_counted_somewhere() {
    let counters = fs::read_to_string(root().join("src/engine/counters.rs")).expect("it is there");
    let (_, list) = counters.split_once("\ncounts! {\n").expect("the list of counters");
    let list = list.split("\n}\n").next().unwrap_or_default();
    let names: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_once(" => "))
        .filter_map(|(name, _)| name.split_whitespace().last())
        .collect();
    assert!(names.len() > 50, "{names:?}");
    let mut counted = String::new();
    for (_, path, text) in sources() {
        if !path.ends_with("tests.rs") {
            counted.push_str(without_tests(&text));
        }
    }
    let is_counted = |name: &str| {
        counted.split(&format!("Count::{name}")).skip(1).any(|rest| !rest.starts_with(char::is_alphanumeric))
    };
    let never: Vec<&&str> = names.iter().filter(|name| !is_counted(name)).collect();
    assert!(never.is_empty(), "in src/engine/counters.rs, and never counted: {never:?}");
}

#[test]
fn every_document_the_readme_names_is_there() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    for part in readme.split("](").skip(1) {
        let target = part.split(')').next().unwrap_or_default();
        if !target.starts_with("http") && !target.starts_with('#') {
            assert!(root().join(target).exists(), "README names {target}, which is not there");
        }
    }
}

#[test]
fn every_test_the_threat_model_names_is_there() {
    let text = fs::read_to_string(root().join("docs/THREAT-MODEL.md")).expect("it is there");
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    let code: String =
        files.iter().map(|path| fs::read_to_string(path).expect("sources are UTF-8")).collect();
    // A test's name is a sentence: longer than any word of the product that stands in back quotes there.
    let names: Vec<&str> =
        text.split('`').filter(|word| word.matches('_').count() >= 3 && !word.contains(' ')).collect();
    assert!(names.len() > 20, "{names:?}");
    let gone: Vec<&&str> = names.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(gone.is_empty(), "docs/THREAT-MODEL.md names tests that are not there: {gone:?}");
}
