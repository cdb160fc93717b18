//! An interpreter for iPXE scripts: the language's rules (iPXE image/script.c, core/exec.c, core/settings.c), and the
//! commands a boot server's scripts use.
//!
//! Pure: what needs the network or time comes out as a [`Step`] and is answered by the host. A command that is not
//! known fails as it does in a build without it, so a script that leans on an optional command shows it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Commands run before a script counts as endless.
const COMMANDS_MAX: u32 = 10_000;
/// Scripts that have chained into each other.
const DEPTH_MAX: usize = 64;

/// What the host has to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Download; answer with [`Interpreter::fetched`].
    Fetch {
        /// Absolute URL.
        url: String,
    },
    /// Nothing for so long; then go on with [`Interpreter::resume`].
    Sleep(Duration),
    /// Over.
    Done(End),
}

/// How a script ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// A kernel would start.
    Booted {
        /// Its name.
        kernel: String,
        /// What it is told.
        cmdline: String,
        /// Everything that was fetched for it, in order.
        images: Vec<String>,
    },
    /// A program was chained.
    Chained(String),
    /// A disk image by HTTP would be booted.
    SanBooted(String),
    /// The local disk would be booted.
    LocalBoot,
    /// iPXE is left; the firmware goes on. True if with success.
    Exited(bool),
    /// Somebody gets a shell.
    Shell,
    /// The machine restarts or switches off.
    Power(&'static str),
    /// The script broke.
    Failed {
        /// The line.
        line: String,
        /// Why.
        reason: String,
    },
}

/// What a download came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// A script: run it when it is chained.
    Script(String),
    /// Anything else.
    Image,
    /// It failed.
    Failed,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct ImageEntry {
    name: String,
    args: String,
    script: Option<String>,
}

#[derive(Clone, Debug)]
struct Frame {
    lines: Vec<String>,
    at: usize,
    /// Tokens of the current line still to be run, and the status so far.
    rest: VecDeque<String>,
    status: bool,
    /// What joined the command to come to the one before.
    join: Join,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Join {
    Always,
    Or,
    And,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Waiting {
    Nothing,
    Download { name: String, args: String, select: bool, chain: bool, replace: bool },
}

/// One command's outcome.
enum Ran {
    Status(bool),
    Out(Step),
    /// Control has moved (goto, chain): the rest of the line is dropped.
    Moved,
}

/// The interpreter.
#[derive(Clone, Debug)]
pub struct Interpreter {
    settings: BTreeMap<String, String>,
    frames: Vec<Frame>,
    images: Vec<ImageEntry>,
    selected: Option<String>,
    menu: Vec<(String, bool)>,
    waiting: Waiting,
    commands: u32,
    line: String,
    /// Everything printed.
    pub screen: String,
}

impl Interpreter {
    /// With iPXE's settings (`net0/mac`, `uuid`, `platform`, ...).
    pub fn new(settings: BTreeMap<String, String>) -> Self {
        Self {
            settings,
            frames: Vec::new(),
            images: Vec::new(),
            selected: None,
            menu: Vec::new(),
            waiting: Waiting::Nothing,
            commands: 0,
            line: String::new(),
            screen: String::new(),
        }
    }

    /// Begins with a script's text.
    pub fn start(&mut self, text: &str) -> Step {
        match self.enter(text) {
            Ok(()) => self.resume(),
            Err(reason) => {
                Step::Done(End::Failed { line: text.lines().next().unwrap_or_default().into(), reason })
            }
        }
    }

    fn enter(&mut self, text: &str) -> Result<(), String> {
        let magic =
            text.strip_prefix("#!ipxe").filter(|rest| rest.starts_with(|c: char| c.is_ascii_whitespace()));
        if magic.is_none() {
            return Err("Exec format error: not a script".into());
        }
        if self.frames.len() >= DEPTH_MAX {
            return Err("scripts chain into each other without end".into());
        }
        let mut lines = Vec::new();
        let mut joined = String::new();
        for line in text.split('\n') {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let line = line.split('\0').next().unwrap_or_default();
            match line.strip_suffix('\\') {
                Some(part) => joined.push_str(part),
                None => lines.push(std::mem::take(&mut joined) + line),
            }
        }
        self.frames.push(Frame { lines, at: 0, rest: VecDeque::new(), status: true, join: Join::Always });
        Ok(())
    }

    /// Answers a [`Step::Fetch`] and goes on.
    pub fn fetched(&mut self, what: Fetched) -> Step {
        let waiting = std::mem::replace(&mut self.waiting, Waiting::Nothing);
        let Waiting::Download { name, args, select, chain, replace } = waiting else { return self.resume() };
        let script = match what {
            Fetched::Failed => {
                self.settle(false);
                return self.resume();
            }
            Fetched::Script(text) => Some(text),
            Fetched::Image => None,
        };
        self.images.retain(|image| image.name != name);
        self.images.push(ImageEntry { name: name.clone(), args, script });
        if select {
            self.selected = Some(name.clone());
        }
        if chain {
            if let Ran::Out(step) = self.execute(&name, replace) {
                return step;
            }
        } else {
            self.settle(true);
        }
        self.resume()
    }

    /// Goes on behind a [`Step::Done`] as iPXE does when what it started comes back to it: a disk without a system,
    /// a program that ends, a shell that is left. `status` is whether that counts as success.
    pub fn returned(&mut self, status: bool) -> Step {
        self.settle(status);
        self.resume()
    }

    fn settle(&mut self, status: bool) {
        if let Some(frame) = self.frames.last_mut() {
            frame.status = status;
        }
    }

    /// Goes on until the host is needed.
    pub fn resume(&mut self) -> Step {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Step::Done(End::Exited(true)) };
            if frame.rest.is_empty() {
                if !frame.status {
                    let reason = "the command failed and nothing on its line caught that".into();
                    return Step::Done(End::Failed { line: self.line.clone(), reason });
                }
                let Some(line) = frame.lines.get(frame.at).cloned() else {
                    // The end of a script: back to the one that chained it, with success.
                    self.frames.pop();
                    if self.frames.is_empty() {
                        return Step::Done(End::Exited(true));
                    }
                    continue;
                };
                frame.at += 1;
                let mut tokens = tokens(&line);
                if tokens.front().is_some_and(|token| token.starts_with(':')) {
                    tokens.pop_front();
                }
                frame.rest = tokens;
                frame.join = Join::Always;
                self.line = line;
                continue;
            }
            let (command, next) = take_command(&mut frame.rest);
            let run = match frame.join {
                Join::Always => true,
                Join::Or => !frame.status,
                Join::And => frame.status,
            };
            frame.join = next;
            if !run {
                continue;
            }
            self.commands += 1;
            if self.commands > COMMANDS_MAX {
                return Step::Done(End::Failed {
                    line: self.line.clone(),
                    reason: "the script does not end".into(),
                });
            }
            let words: Vec<String> = command.iter().map(|token| self.expand(token)).collect();
            match self.command(&words) {
                Ran::Status(status) => self.settle(status),
                Ran::Out(step) => return step,
                Ran::Moved => {}
            }
        }
    }

    /// Replaces the innermost `${...}` until none is left; an unknown setting is empty.
    fn expand(&self, token: &str) -> String {
        let mut text = token.to_owned();
        for _ in 0..1000 {
            let Some(open) = text.rfind("${").filter(|open| text[*open..].contains('}')).or_else(|| {
                // A later "${" without its "}" must not hide an earlier complete one.
                text.match_indices("${").map(|(at, _)| at).filter(|at| text[*at..].contains('}')).last()
            }) else {
                return text;
            };
            let close = open + text[open..].find('}').unwrap_or(0);
            let value = self.setting(&text[open + 2..close]);
            text.replace_range(open..=close, &value);
        }
        text
    }

    fn setting(&self, name: &str) -> String {
        let (name, kind) = name.split_once(':').unwrap_or((name, ""));
        let value = self.settings.get(name).cloned().unwrap_or_default();
        match kind {
            "uristring" => value
                .bytes()
                .map(|byte| match byte {
                    b' ' | b'%' | b'/' | b'#' | b':' | b'@' | b'?' | b'=' | b'&' => format!("%{byte:02X}"),
                    byte if byte.is_ascii_graphic() => char::from(byte).to_string(),
                    byte => format!("%{byte:02X}"),
                })
                .collect(),
            "hexhyp" => value.replace(':', "-"),
            "hexraw" => value.replace(':', ""),
            _ => value,
        }
    }

    fn command(&mut self, words: &[String]) -> Ran {
        let Some((name, args)) = words.split_first() else { return Ran::Status(true) };
        let arg = |index: usize| args.get(index).map(String::as_str).unwrap_or_default();
        match name.as_str() {
            "" | "ifopen" | "ifclose" | "ifconf" | "ifstat" | "route" | "imgstat" | "colour" | "cpair"
            | "sync" | "iflinkwait" | "show" => Ran::Status(true),
            "dhcp" => Ran::Status(true),
            "echo" => {
                self.screen.push_str(&args.join(" "));
                self.screen.push('\n');
                Ran::Status(true)
            }
            "set" => {
                let key = arg(0).split(':').next().unwrap_or_default().to_owned();
                let value = args.get(1..).unwrap_or_default().join(" ");
                if value.is_empty() {
                    self.settings.remove(&key)
                } else {
                    self.settings.insert(key, value)
                };
                Ran::Status(!arg(0).is_empty())
            }
            "clear" => {
                self.settings.remove(arg(0));
                Ran::Status(true)
            }
            "inc" => {
                let value: i64 = self.settings.get(arg(0)).and_then(|v| v.parse().ok()).unwrap_or(0);
                let by: i64 = if args.len() > 1 { arg(1).parse().unwrap_or(0) } else { 1 };
                self.settings.insert(arg(0).to_owned(), (value + by).to_string());
                Ran::Status(true)
            }
            "isset" => Ran::Status(args.len() == 1 && !arg(0).is_empty()),
            "iseq" => Ran::Status(args.len() == 2 && arg(0) == arg(1)),
            "cpuid" => {
                let long_mode = self.settings.get("cpuid/longmode").is_some_and(|v| v == "1");
                Ran::Status(
                    args.iter().any(|a| a == "--ext") && args.last().is_some_and(|a| a == "29") && long_mode,
                )
            }
            "goto" => self.goto(arg(0)),
            "exit" => Ran::Out(self.exit(args)),
            "sleep" => {
                self.settle(true);
                Ran::Out(Step::Sleep(Duration::from_secs(arg(0).parse().unwrap_or(0))))
            }
            // Nobody presses a key, which takes as long as it is waited for.
            "prompt" => {
                let after = args.iter().skip_while(|arg| *arg != "--timeout").nth(1);
                match after.and_then(|millis| millis.parse().ok()) {
                    None | Some(0) => Ran::Status(false),
                    Some(millis) => {
                        self.settle(false);
                        Ran::Out(Step::Sleep(Duration::from_millis(millis)))
                    }
                }
            }
            "menu" => {
                self.menu.clear();
                Ran::Status(true)
            }
            "item" => {
                let gap = args.iter().any(|a| a == "--gap");
                let default = args.iter().any(|a| a == "--default");
                let mut rest = args.iter();
                let mut label = None;
                while let Some(word) = rest.next() {
                    match word.as_str() {
                        "--key" | "--menu" => drop(rest.next()),
                        "--gap" | "--default" | "--" => {}
                        _ => {
                            label = Some(word.clone());
                            break;
                        }
                    }
                }
                if let Some(label) = label.filter(|_| !gap) {
                    self.menu.push((label, default));
                }
                Ran::Status(true)
            }
            "choose" => self.choose(args),
            "imgfree" => {
                match args.first() {
                    Some(name) => self.images.retain(|image| image.name != *name),
                    None => self.images.clear(),
                }
                Ran::Status(true)
            }
            "imgargs" => {
                let text = args.get(1..).unwrap_or_default().join(" ");
                let image = self.images.iter_mut().find(|image| image.name == arg(0));
                let found = image.map(|image| image.args = text).is_some();
                Ran::Status(found)
            }
            "kernel" | "imgselect" | "imgload" => self.download(args, true, false),
            "initrd" | "imgfetch" | "module" => self.download(args, false, false),
            "chain" | "imgexec" => self.download(args, true, true),
            "boot" if args.is_empty() => match self.selected.clone() {
                Some(name) => self.execute(&name, false),
                None => Ran::Status(false),
            },
            "boot" => self.download(args, true, true),
            "sanboot" | "sanhook" => match args.iter().find(|word| word.contains("://")) {
                Some(url) => Ran::Out(Step::Done(End::SanBooted(url.clone()))),
                None => Ran::Out(Step::Done(End::LocalBoot)),
            },
            "shell" | "login" | "config" => Ran::Out(Step::Done(End::Shell)),
            "reboot" => Ran::Out(Step::Done(End::Power("reboot"))),
            "poweroff" => Ran::Out(Step::Done(End::Power("poweroff"))),
            // params, console, imgextract and all that builds may lack: "command not found".
            other => {
                self.screen.push_str(other);
                self.screen.push_str(": command not found\n");
                Ran::Status(false)
            }
        }
    }

    fn goto(&mut self, label: &str) -> Ran {
        let Some(frame) = self.frames.last_mut() else { return Ran::Status(false) };
        let found = frame.lines.iter().position(|line| {
            tokens(line).front().and_then(|token| token.strip_prefix(':')).is_some_and(|name| name == label)
        });
        match found {
            Some(at) => {
                frame.at = at;
                frame.rest.clear();
                frame.status = true;
                Ran::Moved
            }
            None => Ran::Status(false),
        }
    }

    fn exit(&mut self, args: &[String]) -> Step {
        let success = args.first().is_none_or(|code| code == "0");
        self.frames.pop();
        if self.frames.is_empty() {
            return Step::Done(End::Exited(success));
        }
        self.settle(success);
        self.resume()
    }

    fn choose(&mut self, args: &[String]) -> Ran {
        let mut default = None;
        let mut setting = None;
        let mut words = args.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--default" => default = words.next().cloned(),
                "--timeout" | "--menu" => drop(words.next()),
                "--keep" | "--" => {}
                // An option old builds do not have.
                option if option.starts_with("--") => return Ran::Status(false),
                name => setting = Some(name.to_owned()),
            }
        }
        let listed = default.filter(|label| self.menu.iter().any(|(name, _)| name == label));
        let marked = || self.menu.iter().find(|(_, default)| *default).map(|(name, _)| name.clone());
        let choice = listed.or_else(marked).or_else(|| self.menu.first().map(|(name, _)| name.clone()));
        match (choice, setting) {
            (Some(choice), Some(setting)) => {
                self.settings.insert(setting, choice);
                Ran::Status(true)
            }
            _ => Ran::Status(false),
        }
    }

    fn download(&mut self, args: &[String], select: bool, chain: bool) -> Ran {
        let mut name = None;
        let mut replace = false;
        let mut words = args.iter();
        let url = loop {
            match words.next().map(String::as_str) {
                Some("--name" | "-n") => name = words.next().cloned(),
                Some("--timeout" | "-t") => drop(words.next()),
                Some("--autofree" | "-a" | "--") => {}
                Some("--replace" | "-r") => replace = true,
                Some(option) if option.starts_with("--") => return Ran::Status(false),
                Some(url) => break url.to_owned(),
                None => return Ran::Status(false),
            }
        };
        let args = words.map(String::as_str).collect::<Vec<_>>().join(" ");
        // A registered image of exactly this name is used instead of a download.
        if let Some(image) = self.images.iter_mut().find(|image| image.name == url) {
            if !args.is_empty() {
                image.args = args;
            }
            if select {
                self.selected = Some(url.clone());
            }
            return if chain { self.execute(&url, replace) } else { Ran::Status(true) };
        }
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let name = name.unwrap_or_else(|| path.rsplit('/').next().unwrap_or_default().to_owned());
        self.waiting = Waiting::Download { name, args, select, chain, replace };
        Ran::Out(Step::Fetch { url })
    }

    fn execute(&mut self, name: &str, replace: bool) -> Ran {
        let Some(image) = self.images.iter().find(|image| image.name == *name).cloned() else {
            return Ran::Status(false);
        };
        let Some(script) = image.script else {
            let others: Vec<String> = self
                .images
                .iter()
                .filter(|other| other.name != *name)
                .map(|other| other.name.clone())
                .collect();
            let end = if others.is_empty() && image.args.is_empty() {
                End::Chained(image.name)
            } else {
                End::Booted { kernel: image.name, cmdline: image.args, images: others }
            };
            return Ran::Out(Step::Done(end));
        };
        // A running script is not registered.
        self.images.retain(|other| other.name != *name);
        if replace {
            self.frames.clear();
        } else {
            self.settle(true);
        }
        match self.enter(&script) {
            Ok(()) => Ran::Moved,
            Err(reason) => Ran::Out(Step::Done(End::Failed { line: self.line.clone(), reason })),
        }
    }
}

/// A line's tokens up to a comment.
fn tokens(line: &str) -> VecDeque<String> {
    line.split([' ', '\t', '\n', '\r', '\x0b', '\x0c'])
        .filter(|token| !token.is_empty())
        .take_while(|token| !token.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// The next command's tokens, and how the one after it is joined.
fn take_command(rest: &mut VecDeque<String>) -> (Vec<String>, Join) {
    let mut command = Vec::new();
    while let Some(token) = rest.pop_front() {
        let join = match token.as_str() {
            "||" => Join::Or,
            "&&" => Join::And,
            ";" => Join::Always,
            _ => {
                command.push(token);
                continue;
            }
        };
        if rest.is_empty() {
            // A separator at the end joins an empty command, which succeeds.
            rest.push_back(String::new());
        }
        return (command, join);
    }
    (command, Join::Always)
}
