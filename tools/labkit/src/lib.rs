//! A laboratory of network namespaces and QEMU machines for tests of a boot server, and for looking by hand.
//!
//! Everything has a name of its own (process id and a count) and is taken down when it is dropped, panics included.
//! Needs root, iproute2, util-linux and, for machines, QEMU. What is missing is a panic that names it: a test that
//! cannot run has failed.
#![forbid(unsafe_code)]

mod machine;
mod media;
mod net;
mod process;
mod web;

pub use machine::{Firmware, Machine, MachineSpec, SNAKEOIL};
pub use media::{DISK_WORD, INIT_WORD, bios_program, efi_program, initramfs, kernel, local_disk};
pub use net::{BRIDGE, FULL, Net, PROXY};
pub use process::{Process, run, tool};
pub use web::{Answer, Asked, WebHost};

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// A number no other part of this process has.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A folder below the system's temporary one, removed on drop.
#[derive(Debug)]
pub struct TempDir(pub std::path::PathBuf);

impl TempDir {
    /// Makes one.
    pub fn new(word: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bootstorm-{word}-{}-{}", std::process::id(), unique()));
        std::fs::create_dir_all(&path).unwrap_or_else(|e| panic!("make {}: {e}", path.display()));
        Self(path)
    }

    /// A path below it.
    pub fn join(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All namespaces share one table of neighbours, which has room for 1,024 unless it is told: a test with thousands of
/// machines would take the others' ARP away. It stays so on this host until that is started again; where it may not be set, it may be
/// enough.
fn room_for_neighbours() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for bound in ["gc_thresh3", "gc_thresh2", "gc_thresh1"] {
            let file = format!("/proc/sys/net/ipv4/neigh/default/{bound}");
            let now = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            if now.is_some_and(|now: u32| now < NEIGHBOURS) {
                let _ = std::fs::write(&file, NEIGHBOURS.to_string());
            }
        }
    });
}

const NEIGHBOURS: u32 = 65_536;

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one, with its loopback up.
    pub fn new() -> Self {
        room_for_neighbours();
        let name = format!("bs{}-{}", std::process::id(), unique());
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// A command that runs inside. `nsenter` and not `ip netns exec`, which would mount another /sys.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// Runs `ip` inside, words separated by blanks.
    pub fn ip(&self, words: &str) {
        run(self.command("ip").args(words.split_whitespace()));
    }

    /// A bridge without forwarding delay, up, with an address (`10.0.0.1/24`) unless that is empty.
    pub fn bridge(&self, name: &str, addr: &str) {
        self.ip(&format!("link add {name} type bridge forward_delay 0"));
        if !addr.is_empty() {
            self.ip(&format!("addr add {addr} dev {name}"));
        }
        self.ip(&format!("link set {name} up"));
    }

    /// A tap on a bridge, for one machine; its name.
    pub fn tap(&self, bridge: &str) -> String {
        let name = format!("tap{}", unique());
        self.ip(&format!("tuntap add {name} mode tap"));
        self.ip(&format!("link set {name} master {bridge} up"));
        name
    }

    /// A wire to another namespace: an interface `here` in this one and `there` in the other, both up.
    pub fn wire(&self, here: &str, other: &Self, there: &str) {
        self.ip(&format!("link add {here} type veth peer name {there} netns {}", other.name));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
    }

    /// Moves the calling thread inside, for good: a socket belongs to the namespace of the thread that made it.
    pub fn enter(&self) {
        let path = format!("/run/netns/{}", self.name);
        let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}
