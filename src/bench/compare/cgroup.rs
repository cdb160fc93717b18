//! A control group for each server: what it has used of the CPU, ended children included, and how much it may use. What the kernel
//! does with packets when it comes to more than a task is to be charged with, it does in a thread of its own ([`SoftIrqs`]).
//!
//! Both generations of control groups are known; which one counts CPU time here is read from the mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::CompareError;

/// What all groups of this program begin with; the rest is its process id and the server's name.
const PREFIX: &str = "bootstorm-compare-";
/// A quota is per this time: short, so that a throttled server answers late and not in bursts of a tenth of a second.
const PERIOD: Duration = Duration::from_millis(10);
/// Eight times what everybody has.
const SHARES_V1: &str = "8192";
const WEIGHT_V2: &str = "800";
/// How long processes may take to be gone after SIGKILL.
const GONE_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(5);

/// Where groups are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// Version 1: `cpuacct` counts, `cpu` limits; they may be mounted together.
    V1 { cpuacct: PathBuf, cpu: Option<PathBuf> },
    /// Version 2 with its `cpu` controller.
    V2 { root: PathBuf },
}

impl Hierarchy {
    /// Finds it, and makes sure that groups may be made.
    pub(super) fn find() -> Result<Self, CompareError> {
        let mounts = fs::read_to_string("/proc/self/mounts")
            .map_err(|error| CompareError::new(format!("/proc/self/mounts: {error}")))?;
        let found = Self::from_mounts(&mounts).ok_or_else(|| {
            CompareError::new(
                "no control groups that count CPU time are mounted: mount -t cgroup2 none /sys/fs/cgroup",
            )
        })?;
        if let Self::V2 { root } = &found {
            // Groups below may only be limited, and their statistics kept, with the controller handed down.
            let control = root.join("cgroup.subtree_control");
            fs::write(&control, "+cpu")
                .map_err(|error| CompareError::new(format!("{}: {error}", control.display())))?;
        }
        Ok(found)
    }

    /// From the text of /proc/self/mounts. Version 1's accounting first: where it is mounted, version 2 has no `cpu`
    /// controller left.
    fn from_mounts(mounts: &str) -> Option<Self> {
        let mut v2 = None;
        let (mut cpuacct, mut cpu) = (None, None);
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(_), Some(place), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let place = PathBuf::from(place);
            let has = |name: &str| options.split(',').any(|option| option == name);
            match kind {
                "cgroup" if has("cpuacct") => {
                    if has("cpu") {
                        cpu = Some(place.clone());
                    }
                    cpuacct = Some(place);
                }
                "cgroup" if has("cpu") => cpu = Some(place),
                "cgroup2" => v2 = Some(place),
                _ => {}
            }
        }
        match cpuacct {
            Some(cpuacct) => Some(Self::V1 { cpuacct, cpu }),
            None => v2.map(|root| Self::V2 { root }),
        }
    }

    fn folders(&self) -> Vec<&Path> {
        match self {
            Self::V1 { cpuacct, cpu: Some(cpu) } if cpu != cpuacct => vec![cpuacct, cpu],
            Self::V1 { cpuacct, .. } => vec![cpuacct],
            Self::V2 { root } => vec![root],
        }
    }

    /// Ends and removes what earlier runs left that were killed without a chance to do it.
    pub(super) fn sweep(&self) {
        for folder in self.folders() {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in entries {
                let name = entry.file_name().to_string_lossy().into_owned();
                let owner =
                    name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
                if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                    end_members(&entry.path());
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    /// A new group.
    pub(super) fn group(&self, name: &str) -> Result<Group, CompareError> {
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        let folders: Vec<PathBuf> = self.folders().iter().map(|folder| folder.join(&name)).collect();
        let group = Group { hierarchy: self.clone(), folders };
        for folder in &group.folders {
            fs::create_dir(folder).map_err(|error| {
                CompareError::new(format!("make control group {}: {error}", folder.display()))
            })?;
            // Ahead of whatever else runs on the machine; refused, it only makes figures noisier.
            for (name, value) in [("cpu.shares", SHARES_V1), ("cpu.weight", WEIGHT_V2)] {
                let file = folder.join(name);
                if file.exists() {
                    let _ = fs::write(file, value);
                }
            }
        }
        Ok(group)
    }
}

/// One server's group. Dropping it ends whoever is still inside.
#[derive(Debug)]
pub(super) struct Group {
    hierarchy: Hierarchy,
    folders: Vec<PathBuf>,
}

impl Group {
    /// Files that take the id of a process that is to belong here.
    pub(super) fn procs(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// Kills whoever is inside and waits until they are gone; what they used stays counted.
    pub(super) fn end_members(&self) {
        self.folders.iter().for_each(|folder| end_members(folder));
    }

    /// CPU time of all that are or were inside.
    pub(super) fn used(&self) -> Result<Duration, CompareError> {
        let (file, read): (_, fn(&str) -> Option<Duration>) = match self.hierarchy {
            Hierarchy::V1 { .. } => ("cpuacct.usage", used_v1),
            Hierarchy::V2 { .. } => ("cpu.stat", used_v2),
        };
        let path = self.folders[0].join(file);
        let text = fs::read_to_string(&path)
            .map_err(|error| CompareError::new(format!("{}: {error}", path.display())))?;
        read(&text).ok_or_else(|| CompareError::new(format!("{}: no CPU time in {text:?}", path.display())))
    }

    /// Behind everybody else: its members run when nobody else wants to. False where no controller can say so. A policy of the
    /// processes alone would not do: the kernel weighs sessions and groups before it looks at what is in them.
    pub(super) fn stand_back(&self) -> bool {
        let folder = self.folders.last().unwrap_or(&self.folders[0]);
        // Since Linux 5.15; before, the least weight there is.
        [("cpu.idle", "1"), ("cpu.shares", "2"), ("cpu.weight", "1")].into_iter().any(|(name, value)| {
            let file = folder.join(name);
            file.exists() && fs::write(file, value).is_ok()
        })
    }

    /// Lets it use `share` of one CPU, or all it can get.
    pub(super) fn limit(&self, share: Option<f64>) -> Result<(), CompareError> {
        let quota = share.map(|share| ((PERIOD.as_micros() as f64 * share) as u64).max(1000));
        let period = PERIOD.as_micros();
        let files = match &self.hierarchy {
            Hierarchy::V1 { cpu: None, .. } => {
                return Err(CompareError::new(
                    "the cpu controller is not mounted, so no server can be throttled",
                ));
            }
            Hierarchy::V1 { .. } => {
                let quota = quota.map_or_else(|| "-1".into(), |quota| quota.to_string());
                vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota)]
            }
            Hierarchy::V2 { .. } => {
                let quota = quota.map_or_else(|| "max".into(), |quota| quota.to_string());
                vec![("cpu.max", format!("{quota} {period}"))]
            }
        };
        let folder = self.folders.last().unwrap_or(&self.folders[0]);
        for (name, value) in files {
            let path = folder.join(name);
            fs::write(&path, value)
                .map_err(|error| CompareError::new(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            end_members(folder);
            // It stays when somebody could not be ended; the next run sweeps it.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Kills every process of a group by its id and waits until they are gone.
fn end_members(folder: &Path) {
    let start = Instant::now();
    while start.elapsed() < GONE_PATIENCE {
        let members: Vec<i32> = match fs::read_to_string(folder.join("cgroup.procs")) {
            Ok(text) => text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect(),
            Err(_) => return,
        };
        if members.is_empty() {
            return;
        }
        for pid in members {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK);
    }
}

/// The kernel's thread for a CPU's softirqs (`ksoftirqd`), to which packets are handed when there are too many for the tail of an
/// interrupt or a system call. It belongs to no server's control group.
#[derive(Debug)]
pub(super) struct SoftIrqs {
    schedstat: PathBuf,
}

impl SoftIrqs {
    /// That of `cpu`; `None` where kernel threads are not shown, as in a container.
    pub(super) fn of(cpu: usize) -> Option<Self> {
        let name = format!("ksoftirqd/{cpu}");
        let folders = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
        let is_it = |folder: &PathBuf| {
            fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let schedstat = folders.into_iter().find(is_it)?.join("schedstat");
        ran(&fs::read_to_string(&schedstat).ok()?)?;
        Some(Self { schedstat })
    }

    /// CPU time it has used.
    pub(super) fn used(&self) -> Duration {
        fs::read_to_string(&self.schedstat).ok().and_then(|text| ran(&text)).unwrap_or_default()
    }
}

/// `schedstat`: nanoseconds on a CPU, nanoseconds waited for one, times run.
fn ran(text: &str) -> Option<Duration> {
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// `cpuacct.usage`: nanoseconds.
fn used_v1(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_nanos)
}

/// `cpu.stat`: a line `usage_usec 12345`.
fn used_v2(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    line.trim().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_that_counts_is_found_in_the_mounts() {
        let split = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
                     cgroup /sys/fs/cgroup/cpuacct cgroup rw,relatime,cpuacct 0 0\n\
                     cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n\
                     cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let (cpuacct, cpu) = (PathBuf::from("/sys/fs/cgroup/cpuacct"), PathBuf::from("/sys/fs/cgroup/cpu"));
        let found = Hierarchy::from_mounts(split).unwrap();
        assert_eq!(found, Hierarchy::V1 { cpuacct: cpuacct.clone(), cpu: Some(cpu.clone()) });
        assert_eq!(found.folders(), [&cpuacct, &cpu]);

        let joint = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n";
        let found = Hierarchy::from_mounts(joint).unwrap();
        assert_eq!(found.folders(), [Path::new("/sys/fs/cgroup/cpu,cpuacct")], "made once");

        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(Hierarchy::from_mounts(unified), Some(Hierarchy::V2 { root: "/sys/fs/cgroup".into() }));
        assert_eq!(Hierarchy::from_mounts("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn cpu_time_is_read_in_both_generations() {
        assert_eq!(used_v1("1500000000\n"), Some(Duration::from_millis(1500)));
        assert_eq!(used_v2("usage_usec 250\nuser_usec 200\n"), Some(Duration::from_micros(250)));
        assert_eq!(used_v1("x"), None);
        assert_eq!(used_v2("user_usec 200\n"), None);
        assert_eq!(ran("11200555687 77785958818 111102\n"), Some(Duration::from_nanos(11_200_555_687)));
        assert_eq!(ran("\n"), None);
    }
}
