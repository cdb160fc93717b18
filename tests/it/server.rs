//! A server under test, and the networks it stands in.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

pub use labkit::{BRIDGE, FULL, Net, PROXY};
use labkit::{Process, TempDir, run, tool};

/// Patience with things that take well under a second on an idle machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Says what was found, for `--nocapture`.
#[allow(clippy::print_stdout, reason = "it is there to be read")]
pub fn tell(found: impl Display) {
    println!("{found}");
}

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_bootstorm")
}

/// A configured server, not started yet.
pub struct Site {
    pub dir: TempDir,
    config: PathBuf,
}

impl Site {
    /// `[server]` is written here; `rest` is the remaining configuration.
    pub fn new(interface: &str, driver: &str, rest: &str) -> Self {
        let dir = TempDir::new("site");
        for name in ["images", "state"] {
            fs::create_dir_all(dir.join(name)).expect("a folder");
        }
        let config = dir.join("bootstorm.toml");
        let text = format!(
            "[server]\ninterfaces = [\"{interface}\"]\nstate_dir = \"{}\"\ndriver = \"{driver}\"\n\
             [images]\ndir = \"{}\"\n{rest}",
            dir.join("state").display(),
            dir.join("images").display(),
        );
        fs::write(&config, text).expect("the configuration can be written");
        Self { dir, config }
    }

    /// Adds the tiny Linux as image `tiny`.
    pub fn add_linux(&self) {
        let folder = self.dir.join("images/tiny");
        fs::create_dir_all(&folder).expect("a folder");
        fs::copy(labkit::kernel(), folder.join("vmlinuz")).expect("the kernel can be copied");
        fs::copy(labkit::initramfs(&self.dir.0), folder.join("initrd.gz"))
            .expect("the initramfs can be copied");
        fs::write(folder.join("image.toml"), "args = \"console=ttyS0 panic=1\"\n").expect("image.toml");
    }

    /// `bootstorm serve`, ready.
    pub fn serve(&self, net: &Net) -> Server<'_> {
        let mut command = net.server.command(binary());
        command.arg("serve").arg("--config").arg(&self.config).args(["--log", "debug"]);
        let mut process = Process::spawn("bootstorm", &mut command, &self.dir.join("server.log"));
        let ready = process.wait_for("bootstorm ready", SOON);
        Server { site: self, process, ready }
    }

    /// More configuration, before the server is started.
    pub fn append(&mut self, text: &str) {
        let all = fs::read_to_string(&self.config).expect("the configuration") + text;
        fs::write(&self.config, all).expect("the configuration can be written");
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Any bootstorm command with this site's configuration, outside every namespace: they meet at the socket.
    pub fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(words).arg("--config").arg(&self.config).output().expect("bootstorm runs")
    }

    /// The same, and it must end well; its output.
    pub fn ask(&self, words: &[&str]) -> String {
        let output = self.command(words);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "bootstorm {words:?}: {}\n{text}", output.status);
        text
    }
}

/// A running server.
pub struct Server<'a> {
    pub site: &'a Site,
    pub process: Process,
    pub ready: String,
}

impl Server<'_> {
    /// A metric's value, from the admin port inside the server's namespace.
    pub fn metric(&self, net: &Net, name: &str) -> u64 {
        let text =
            run(net.server.command(tool("curl", "curl")).args(["-sS", "http://127.0.0.1:8081/metrics"]));
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().expect("a metric has a value").parse().expect("a value is a number")
    }

    /// Ends it as a service manager does; its exit status must be 0.
    pub fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.wait(SOON);
        assert!(status.success(), "{status}\n{}", self.process.output());
    }
}
