//! Programs started by the lab: their output kept, waited for by content, ended by pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a file is looked at for a line.
const LOOK: Duration = Duration::from_millis(20);
/// A line that has no end by then has none.
const UNENDED: Duration = Duration::from_secs(5);

/// Panics with the package to install when a program is missing.
pub fn tool(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install --no-install-recommends {package}"))
}

/// Runs a command to its end; panics with its output when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// A running program. Killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: PathBuf,
    name: String,
}

impl Process {
    /// Starts it with both outputs going to `output`.
    pub fn spawn(name: &str, command: &mut Command, output: &Path) -> Self {
        let file = File::create(output).unwrap_or_else(|e| panic!("{}: {e}", output.display()));
        let error = file.try_clone().expect("a file can be opened twice");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(error)
            .spawn()
            .unwrap_or_else(|e| panic!("start {name}: {e}"));
        Self { child, output: output.to_owned(), name: name.to_owned() }
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Process id. Of `nsenter`, which has become the program by exec.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its output holds `text`; the line. Panics with all output when it ends or time is up.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> String {
        let output = self.output.clone();
        self.wait_for_in(&output, text, patience)
    }

    /// Waits until a file that it writes holds `text`.
    pub fn wait_for_in(&mut self, file: &Path, text: &str, patience: Duration) -> String {
        let start = Instant::now();
        let mut unended = None;
        loop {
            // Looked at before the process is, so that what it wrote last is seen.
            let ended = self.child.try_wait().expect("a child can be waited for");
            let content = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
            if let Some(line) = content.split_inclusive('\n').find(|line| line.contains(text)) {
                // The rest of a line may still be on its way; a prompt never ends.
                let seen = *unended.get_or_insert_with(Instant::now);
                if line.ends_with('\n') || ended.is_some() || seen.elapsed() > UNENDED {
                    return line.trim_end_matches(['\r', '\n']).to_owned();
                }
                std::thread::sleep(LOOK);
                continue;
            }
            let why = match ended {
                Some(status) => format!("{} ended ({status})", self.name),
                None if start.elapsed() > patience => format!("{} took more than {patience:?}", self.name),
                None => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            panic!(
                "{why} before {text:?} was seen in {}:\n{content}\n--- its output:\n{}",
                file.display(),
                self.output()
            );
        }
    }

    /// Waits until a file that it writes holds one of `words`; which one, or `None` when time is up. Panics when it ends
    /// before.
    pub fn see_in(&mut self, file: &Path, words: &[&str], patience: Duration) -> Option<usize> {
        let start = Instant::now();
        loop {
            // Looked at before the process is, so that what it wrote last is seen.
            let ended = self.child.try_wait().expect("a child can be waited for");
            let content = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
            if let Some(found) = words.iter().position(|word| content.contains(word)) {
                return Some(found);
            }
            assert!(ended.is_none(), "{} ended ({ended:?}) without one of {words:?}:\n{content}", self.name);
            if start.elapsed() > patience {
                return None;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(
                start.elapsed() < patience,
                "{} still runs after {patience:?}:\n{}",
                self.name,
                self.output()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Sends a signal by name (`TERM`, `HUP`, `KILL`).
    pub fn signal(&self, name: &str) {
        run(Command::new("kill").args([format!("-{name}"), self.pid().to_string()]));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.output();
            let tail: Vec<&str> = text.lines().rev().take(60).collect();
            eprintln!("--- {} printed last:", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
