//! Where servers and load stand: network namespaces that vanish with this process, wires between them, and processes
//! that are ended by their id.
//!
//! A namespace here has no name: a process that reads from a pipe of ours holds it, so that even a killed comparison
//! leaves none behind. Servers get SIGTERM from the kernel when this process ends, however it ends; one that has changed its
//! user since (dnsmasq) does not, and is ended by the next comparison.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::CompareError;
use super::cgroup::Group;

/// How often a process is looked at while waiting for it.
const LOOK: Duration = Duration::from_millis(5);
/// How long a command may take that sets something up or tells a version.
const COMMAND_PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to end after SIGTERM.
const TERM_PATIENCE: Duration = Duration::from_secs(2);

/// Runs a command to its end; what it printed, both outputs. One that does not end is killed.
pub(super) fn run(command: &mut Command) -> Result<String, CompareError> {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let failed = |why: &dyn std::fmt::Display| CompareError::new(format!("{}: {why}", words.join(" ")));
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let outcome = watch(child, COMMAND_PATIENCE, &AtomicBool::new(false)).map_err(|error| failed(&error))?;
    let text = format!("{}{}", outcome.output, outcome.errors);
    match outcome.status {
        Some(status) if status.success() => Ok(text),
        Some(_) => Err(failed(&text.trim())),
        None => Err(failed(&format!("it did not end within {COMMAND_PATIENCE:?}"))),
    }
}

/// What a child left behind; no status: it was killed because its time was over or the end was asked for.
struct Outcome {
    status: Option<std::process::ExitStatus>,
    output: String,
    errors: String,
}

/// Waits for a child whose outputs are pipes.
fn watch(mut child: Child, patience: Duration, stop: &AtomicBool) -> std::io::Result<Outcome> {
    // Read beside, or a long answer would fill the pipe and the child would wait for ever.
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stream.map(|mut stream| stream.read_to_end(&mut bytes));
            read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        })
    };
    let output = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let errors = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let start = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if stop.load(Ordering::Relaxed) || start.elapsed() > patience => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(LOOK),
        }
    };
    let (output, errors) = (output.join().unwrap_or_default(), errors.join().unwrap_or_default());
    Ok(Outcome { status, output, errors })
}

/// Followed by the process id of its owner.
const FOLDER: &str = "bootstorm-compare-";

/// Removes what killed comparisons left; only root's, since anybody may make a folder of that name.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(FOLDER).and_then(|pid| pid.parse::<u32>().ok());
        let is_roots = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == 0);
        if owner.is_some_and(|pid| is_roots && !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A folder below the system's temporary one, removed on drop.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// One that everybody may read: servers drop root.
    pub(super) fn new() -> Result<Self, CompareError> {
        sweep();
        let path = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
        let failed = |error: std::io::Error| CompareError::new(format!("make {}: {error}", path.display()));
        fs::create_dir(&path).map_err(failed)?;
        let folder = Self(path.clone());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).map_err(failed)?;
        Ok(folder)
    }

    pub(super) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing sensible is left to do when even this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A network namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    holder: Child,
}

impl Namespace {
    /// Makes one with its loopback up.
    pub(super) fn new() -> Result<Self, CompareError> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made && exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| CompareError::new(format!("unshare (of util-linux): {error}")))?;
        let mut line = String::new();
        let made = holder.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        let namespace = Self { holder };
        if !matches!(made, Some(Ok(_))) || line.trim() != "made" {
            return Err(CompareError::permission("make a network namespace: this needs root"));
        }
        namespace.ip("link set lo up")?;
        // BBR's pacing would double the cost of everything, and not for all alike.
        namespace.set("net.ipv4.tcp_congestion_control", super::CONGESTION_CONTROL)?;
        Ok(namespace)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// A command that runs inside. `nsenter` becomes the program, so its process id is the program's.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs `ip` inside, words separated by blanks.
    pub(super) fn ip(&self, words: &str) -> Result<(), CompareError> {
        run(self.command("ip").args(words.split_whitespace())).map(drop)
    }

    /// Sets a kernel parameter of the namespace.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<(), CompareError> {
        let script = format!("echo {value} > /proc/sys/{}", name.replace('.', "/"));
        run(self.command("sh").arg("-c").arg(script)).map(drop)
    }

    /// A wire to another namespace: `here` in this one, `there` in the other, both up.
    pub(super) fn wire(&self, here: &str, other: &Self, there: &str) -> Result<(), CompareError> {
        self.ip(&format!("link add {here} type veth peer name {there} netns {}", other.holder.id()))?;
        self.ip(&format!("link set {here} up"))?;
        other.ip(&format!("link set {there} up"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Words for a shell that make it a member of a group.
fn joins(group: &Group) -> String {
    group.procs().iter().map(|procs| format!("echo $$ > {} && ", procs.display())).collect()
}

/// `program` as a command that runs in a namespace, on a CPU and in a group, and ends with this process.
pub(super) fn inside(namespace: &Namespace, cpu: usize, group: &Group, program: &Command) -> Command {
    // The shell joins the group and becomes the program, which thereby never runs outside of it.
    let joins = joins(group);
    let mut command = namespace.command("sh");
    command.args([
        "-c",
        &format!("{joins}exec \"$@\""),
        "sh",
        "setpriv",
        "--pdeathsig",
        "TERM",
        "taskset",
        "-c",
    ]);
    command.arg(cpu.to_string()).arg(program.get_program()).args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// A running server, or the impaired wire. Ended on drop.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `program` in `namespace` on `cpu`, as a member of `group`; what it prints goes to `output`.
    pub(super) fn start(
        name: &str,
        namespace: &Namespace,
        cpu: usize,
        group: &Group,
        program: &Command,
        output: &Path,
    ) -> Result<Self, CompareError> {
        let failed =
            |what: &Path, error: std::io::Error| CompareError::new(format!("{}: {error}", what.display()));
        let file = File::create(output).map_err(|error| failed(output, error))?;
        let error_file = file.try_clone().map_err(|error| failed(output, error))?;
        let mut command = inside(namespace, cpu, group, program);
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(error_file)
            .spawn()
            .map_err(|error| CompareError::new(format!("start {name}: {error}")))?;
        Ok(Self { name: name.to_owned(), child, output: output.to_owned() })
    }

    /// What it printed last, when it has ended.
    pub(super) fn why_ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("{} ended ({status}): {}", self.name, last_lines(&self.output)))
    }

    /// Waits until it has printed `word`.
    pub(super) fn wait_for(
        &mut self,
        word: &str,
        patience: Duration,
        stop: &AtomicBool,
    ) -> Result<(), CompareError> {
        let start = Instant::now();
        loop {
            // Looked at before the process is, so that what it wrote last is seen.
            let ended = self.why_ended();
            if fs::read_to_string(&self.output).unwrap_or_default().contains(word) {
                return Ok(());
            }
            if let Some(why) = ended {
                return Err(CompareError::new(why));
            }
            if start.elapsed() > patience {
                return Err(CompareError::new(format!("{} is not ready after {patience:?}", self.name)));
            }
            interrupted(stop)?;
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < TERM_PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's CPU and the load's: the first one, and the first other one that does not share its core with it. Where there
/// is only one, both.
pub(super) fn cpu_pair(allowed: &[usize]) -> (usize, usize) {
    let server = allowed.first().copied().unwrap_or_default();
    let siblings =
        fs::read_to_string(format!("/sys/devices/system/cpu/cpu{server}/topology/thread_siblings_list"))
            .unwrap_or_default();
    let others = || allowed.iter().copied().filter(|cpu| *cpu != server);
    let load = others().find(|cpu| !is_listed(siblings.trim(), *cpu)).or_else(|| others().next());
    (server, load.unwrap_or(server))
}

/// Whether a list as the kernel writes them, `0-3,8`, names a CPU.
fn is_listed(list: &str, cpu: usize) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&cpu))
    })
}

/// Keeps CPUs from falling asleep: on each, a process that runs only when nobody else wants to. Without it, how long a
/// sleeping CPU takes to wake is part of every exchange of few clients, and differs from run to run by more than
/// servers do.
#[derive(Debug)]
pub(super) struct Awake(Vec<Child>);

impl Awake {
    /// On every CPU of `cpus`, as members of `group`, which must stand back behind everybody.
    pub(super) fn keep(cpus: &[usize], group: &Group) -> Result<Self, CompareError> {
        let mut awake = Self(Vec::new());
        for cpu in cpus {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "taskset", "-c", &cpu.to_string(), "chrt", "--idle", "0"]);
            command.args(["sh", "-c", &format!("{}while :; do :; done", joins(group))]);
            let child = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|error| CompareError::new(format!("setpriv: {error}")))?;
            awake.0.push(child);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The last lines of a program's output, in one.
fn last_lines(output: &Path) -> String {
    let text = fs::read(output).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" / ");
    if last.is_empty() { "it printed nothing".into() } else { last }
}

/// Runs a load to its end, or until `patience` or `stop`; its standard output.
pub(super) fn run_load(
    command: &mut Command,
    patience: Duration,
    stop: &AtomicBool,
) -> Result<String, LoadFailure> {
    let failed = |error: std::io::Error| LoadFailure::Failed(format!("start the load: {error}"));
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let Outcome { status, output, errors } = watch(child, patience, stop).map_err(failed)?;
    if stop.load(Ordering::Relaxed) {
        return Err(LoadFailure::Interrupted);
    }
    match status {
        Some(status) if status.success() || !output.trim().is_empty() => Ok(output),
        Some(status) => Err(LoadFailure::Failed(match errors.trim() {
            "" => format!("the load ended with {status}"),
            errors => errors.lines().last().unwrap_or(errors).to_owned(),
        })),
        None => Err(LoadFailure::Failed(format!("the load took more than {patience:?}"))),
    }
}

/// Why a load gave nothing.
#[derive(Debug)]
pub(super) enum LoadFailure {
    /// The whole comparison is to end.
    Interrupted,
    /// One sentence.
    Failed(String),
}

/// An error once somebody has asked for the end.
pub(super) fn interrupted(stop: &AtomicBool) -> Result<(), CompareError> {
    if stop.load(Ordering::Relaxed) { Err(CompareError::interrupted()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert!(is_listed("0-3,8", 2) && is_listed("0-3,8", 8) && is_listed("5", 5));
        assert!(!is_listed("0-3,8", 4) && !is_listed("", 0));
        assert_eq!(cpu_pair(&[7]), (7, 7));
        assert_ne!(cpu_pair(&[0, 1]).1, 0);
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_and_said() {
        let child = Command::new("sleep").arg("60").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let began = Instant::now();
        let outcome = watch(child.unwrap(), Duration::from_millis(50), &AtomicBool::new(false)).unwrap();
        assert!(outcome.status.is_none() && began.elapsed() < Duration::from_secs(30));
        assert_eq!(run(Command::new("echo").arg("said")).unwrap(), "said\n");
        assert!(
            run(Command::new("sh").args(["-c", "echo why >&2; false"])).unwrap_err().message.contains("why")
        );
    }
}
