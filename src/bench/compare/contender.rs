//! The servers: how each is found, told its version by, configured as its own documentation advises for speed, and
//! started alone in a namespace of its own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use super::cgroup::{Group, Hierarchy};
use super::place::{Folder, Namespace, Process, run};
use super::work::HTTPS_PORT;
use super::{CompareError, SOON};
use crate::bench::find_programs;
use crate::bench::report::{Missing, NULL, OURS, Server};

/// The file of HTTP loads and windowed TFTP, and the one of lockstep TFTP, below the folder of images.
pub(super) const IMAGE: &str = "data/image.bin";
pub(super) const LOADER: &str = "data/loader.bin";
/// Its length is what keeps block numbers below 65536 at 1428 bytes: not every peer takes them further.
pub(super) const LOADER_LEN: u64 = 64 << 20;
/// The folder of the certificate that all show by HTTPS; not there where nothing is asked by HTTPS.
pub(super) const CERTIFICATES: &str = "https";
/// A server that fell over is started again so often.
const RESTARTS_MAX: u32 = 20;
/// Body of the script nginx answers with, about as long as one of ours.
const SCRIPT_LEN: usize = 600;

/// What a server is started for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Ours,
    /// This program beside another DHCP server.
    OursProxy,
    /// This program with the ring switched off, and with its zero-copy sends whatever the device does with them.
    OursSplice,
    OursZeroCopy,
    /// This program with TFTP by sockets alone, as where the host has a packet filter.
    OursSockets,
    Nginx,
    Dnsmasq,
    DnsmasqProxy,
    TftpdHpa,
    Atftpd,
    Kea,
    /// With its lease file.
    KeaPersist,
    /// This program answering without doing anything: what the load itself can do.
    Null,
    NullProxy,
}

impl Kind {
    pub(super) const ALL: [Self; 14] = [
        Self::Ours,
        Self::OursProxy,
        Self::OursSplice,
        Self::OursZeroCopy,
        Self::OursSockets,
        Self::Nginx,
        Self::Dnsmasq,
        Self::DnsmasqProxy,
        Self::TftpdHpa,
        Self::Atftpd,
        Self::Kea,
        Self::KeaPersist,
        Self::Null,
        Self::NullProxy,
    ];

    /// Name in rows. A proxy has its server's: it is another mode of the same program.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours | Self::OursProxy | Self::OursSplice | Self::OursZeroCopy | Self::OursSockets => OURS,
            Self::Nginx => "nginx",
            Self::Dnsmasq | Self::DnsmasqProxy => "dnsmasq",
            Self::TftpdHpa => "tftpd-hpa",
            Self::Atftpd => "atftpd",
            Self::Kea => "kea",
            Self::KeaPersist => "kea-persist",
            Self::Null | Self::NullProxy => NULL,
        }
    }

    /// What `--peers` calls it; `None` for this program.
    pub(super) fn peer(self) -> Option<&'static str> {
        match self {
            Self::Ours
            | Self::OursProxy
            | Self::OursSplice
            | Self::OursZeroCopy
            | Self::OursSockets
            | Self::Null
            | Self::NullProxy => None,
            Self::KeaPersist => Some("kea"),
            kind => Some(kind.name()),
        }
    }

    /// Program and Debian's package.
    fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Ours
            | Self::OursProxy
            | Self::OursSplice
            | Self::OursZeroCopy
            | Self::OursSockets
            | Self::Null
            | Self::NullProxy => (OURS, OURS),
            Self::Nginx => ("nginx", "nginx-light"),
            Self::Dnsmasq | Self::DnsmasqProxy => ("dnsmasq", "dnsmasq-base"),
            Self::TftpdHpa => ("in.tftpd", "tftpd-hpa"),
            Self::Atftpd => ("atftpd", "atftpd"),
            Self::Kea | Self::KeaPersist => ("kea-dhcp4", "kea-dhcp4-server"),
        }
    }

    /// How it is tuned, for the report.
    fn settings(self) -> &'static str {
        match self {
            Self::Ours | Self::OursProxy => "one core, defaults",
            Self::OursSplice => "one core, driver mio, zero_copy off",
            Self::OursZeroCopy => {
                "one core, driver uring, zero_copy always, sandbox off (no bound on pinned memory)"
            }
            Self::OursSockets => "one core, tftp.frames off",
            Self::Nginx => {
                "1 worker, sendfile, sendfile_max_chunk 2m, tcp_nopush, open_file_cache, reuseport, no access log, \
                 keepalive_requests 10000000; \
                 TLS 1.2 and 1.3 without kTLS, no session cache, ssl_buffer_size 16k"
            }
            Self::Dnsmasq | Self::DnsmasqProxy => {
                "tftp-max 10000, dhcp-lease-max 200000, no ping, quiet; it knows no windowsize"
            }
            Self::TftpdHpa => "standalone, no cap on blksize; it knows no windowsize",
            Self::Atftpd => "maxthread 10000, verbose 0",
            Self::Kea => "memfile without persistence, multi-threading off (one core), no log below errors",
            Self::Null | Self::NullProxy => "answers without doing anything: what the load itself can reach",
            Self::KeaPersist => {
                "memfile with its lease file, multi-threading off (one core), no log below errors"
            }
        }
    }

    /// Its file. atftpd's package brings an `in.tftpd` of its own, so that name alone does not tell who it is.
    fn find(self) -> Option<PathBuf> {
        let (program, _) = self.program();
        let is_it = |path: &PathBuf| {
            self != Self::TftpdHpa
                || run(Command::new(path).arg("-V")).is_ok_and(|text| text.contains("tftp-hpa"))
        };
        find_programs(program).into_iter().find(is_it)
    }

    /// What to install when it is not there.
    pub(super) fn missing(self) -> Option<Missing> {
        let there = self.peer().is_none() || self.find().is_some();
        let (_, package) = self.program();
        (!there).then(|| Missing { server: self.name().into(), package: package.into(), why: String::new() })
    }
}

/// What servers are made from.
pub(super) struct Site<'a> {
    pub(super) folder: &'a Folder,
    pub(super) client: &'a Namespace,
    pub(super) hierarchy: &'a Hierarchy,
    pub(super) cpu: usize,
    pub(super) stop: &'a AtomicBool,
    /// This program's own file.
    pub(super) program: &'a Path,
}

/// A server in its place, running unless it ended by itself. The order of the fields is the order of their end.
pub(super) struct Contender {
    pub(super) kind: Kind,
    process: Option<Process>,
    pub(super) group: Group,
    pub(super) namespace: Namespace,
    number: u8,
    /// How often it had to be started again because it had ended.
    pub(super) fell_over: u32,
    /// Its address.
    pub(super) addr: Ipv4Addr,
    /// Its address for UDP, which is another one where the kernel is not asked.
    pub(super) frames_addr: Ipv4Addr,
    /// The load's interface towards it.
    pub(super) interface: String,
    pub(super) server: Server,
}

impl Contender {
    /// Starts the `number`th server, joined to the load by a wire of its own, and waits until it says that it runs.
    /// Whether it answers is for the first load to find out.
    pub(super) fn start(kind: Kind, number: u8, site: &Site<'_>) -> Result<Self, CompareError> {
        let namespace = Namespace::new()?;
        let interface = format!("to-{number}");
        namespace.wire("lan", site.client, &interface)?;
        let addr = Ipv4Addr::new(10, number, 0, 1);
        namespace.ip(&format!("addr add {addr}/16 dev lan"))?;
        site.client.ip(&format!("addr add 10.{number}.0.2/16 dev {interface}"))?;
        let group = site.hierarchy.group(&number.to_string())?;
        let frames_addr = match kind {
            Kind::Null | Kind::NullProxy => null_addr(number),
            _ => addr,
        };
        let server = Server {
            name: kind.name().into(),
            version: version(kind, site),
            settings: kind.settings().into(),
        };
        let mut contender = Self {
            kind,
            process: None,
            group,
            namespace,
            number,
            fell_over: 0,
            addr,
            frames_addr,
            interface,
            server,
        };
        contender.restart(site)?;
        Ok(contender)
    }

    /// Ends it if it runs, and starts it in the same place with nothing left of what it knew.
    pub(super) fn restart(&mut self, site: &Site<'_>) -> Result<(), CompareError> {
        self.process = None;
        self.group.end_members();
        let own = site.folder.join(format!("server-{}", self.number));
        let failed = |error| CompareError::new(format!("make {}: {error}", own.display()));
        match fs::remove_dir_all(&own) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => fs::create_dir(&own).map_err(failed)?,
        }
        // Servers that drop root keep their leases here.
        let _ = fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let images = site.folder.join("images");
        let recipe = Recipe {
            kind: self.kind,
            number: self.number,
            addr: self.addr,
            own: &own,
            images: &images,
            site,
        };
        let (command, ready) = recipe.command()?;
        let (name, output) = (self.kind.name(), own.join("output"));
        let process = Process::start(name, &self.namespace, site.cpu, &self.group, &command, &output)?;
        self.process.insert(process).wait_for(ready, SOON, site.stop)
    }

    /// Why it does not run, when it does not.
    pub(super) fn why_ended(&mut self) -> Option<String> {
        match &mut self.process {
            Some(process) => process.why_ended(),
            None => Some(format!("{} does not run", self.kind.name())),
        }
    }

    /// Starts it again after it ended by itself, unless it has done that too often.
    pub(super) fn stand_up(&mut self, site: &Site<'_>) -> Result<(), CompareError> {
        if self.fell_over >= RESTARTS_MAX {
            return Err(CompareError::new(format!("it was started again {RESTARTS_MAX} times")));
        }
        self.fell_over += 1;
        self.restart(site)
    }
}

/// Where the null responder answers frames from: the kernel must not have that address.
fn null_addr(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, number, 0, 9)
}

/// What a server calls itself.
fn version(kind: Kind, site: &Site<'_>) -> String {
    let (_, package) = kind.program();
    let ask = |program: &Path, flag: &str| {
        let text = run(Command::new(program).arg(flag)).unwrap_or_default();
        text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
    };
    let path = kind.find().unwrap_or_default();
    let said = match kind {
        Kind::Ours
        | Kind::OursProxy
        | Kind::OursSplice
        | Kind::OursZeroCopy
        | Kind::OursSockets
        | Kind::Null
        | Kind::NullProxy => ask(site.program, "--version"),
        Kind::Nginx => ask(&path, "-v").replace("nginx version: ", ""),
        Kind::Dnsmasq | Kind::DnsmasqProxy => {
            ask(&path, "--version").split("Copyright").next().unwrap_or_default().trim().to_owned()
        }
        Kind::TftpdHpa => ask(&path, "-V").split(',').next().unwrap_or_default().to_owned(),
        Kind::Atftpd => ask(&path, "--version"),
        Kind::Kea | Kind::KeaPersist => format!("kea-dhcp4 {}", ask(&path, "-v")),
    };
    if said.is_empty() { format!("of package {package}") } else { said }
}

/// All that a command line and a configuration are made from.
struct Recipe<'a> {
    kind: Kind,
    number: u8,
    addr: Ipv4Addr,
    own: &'a Path,
    images: &'a Path,
    site: &'a Site<'a>,
}

impl Recipe<'_> {
    /// The command, and what it prints once it runs (nothing: its first answer tells).
    fn command(&self) -> Result<(Command, &'static str), CompareError> {
        let (name, package) = self.kind.program();
        let program = match self.kind {
            Kind::Ours
            | Kind::OursProxy
            | Kind::OursSplice
            | Kind::OursZeroCopy
            | Kind::OursSockets
            | Kind::Null
            | Kind::NullProxy => self.site.program.to_owned(),
            kind => kind.find().ok_or_else(|| CompareError::new(format!("{name} of {package} is gone")))?,
        };
        let mut command = Command::new(program);
        let ready = match self.kind {
            Kind::Ours | Kind::OursProxy | Kind::OursSplice | Kind::OursZeroCopy | Kind::OursSockets => {
                let config = self.write("bootstorm.toml", &self.ours())?;
                command.arg("serve").arg("--config").arg(config).args(["--log", "warn"]);
                "bootstorm ready"
            }
            Kind::Null | Kind::NullProxy => {
                command.args([
                    "bench",
                    "null",
                    "--interface",
                    "lan",
                    "--address",
                    &null_addr(self.number).to_string(),
                ]);
                command.args(["--http", &format!("{}:4433", self.addr), "--size", "64MiB"]);
                if self.kind == Kind::NullProxy {
                    command.arg("--proxy");
                }
                "null ready http"
            }
            Kind::Nginx => {
                let config = self.write("nginx.conf", &self.nginx())?;
                command.arg("-p").arg(self.own).arg("-c").arg(config);
                ""
            }
            Kind::Dnsmasq | Kind::DnsmasqProxy => {
                command.args(self.dnsmasq());
                "started, version"
            }
            Kind::TftpdHpa => {
                command.args(["-L", "-a", &format!("{}:69", self.addr), "-u", "root", "-s"]).arg(self.images);
                ""
            }
            Kind::Atftpd => {
                command.args([
                    "--daemon",
                    "--no-fork",
                    "--logfile",
                    "-",
                    "--verbose=0",
                    "--maxthread",
                    "10000",
                ]);
                command
                    .args(["--user", "root.root", "--bind-address", &self.addr.to_string()])
                    .arg(self.images);
                ""
            }
            Kind::Kea | Kind::KeaPersist => {
                let config = self.write("kea.json", &self.kea())?;
                command.arg("-c").arg(config);
                for name in ["KEA_PIDFILE_DIR", "KEA_LOCKFILE_DIR"] {
                    command.env(name, self.own);
                }
                ""
            }
        };
        Ok((command, ready))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, CompareError> {
        let path = self.own.join(name);
        fs::write(&path, text)
            .map_err(|error| CompareError::new(format!("write {}: {error}", path.display())))?;
        Ok(path)
    }

    /// Addresses for DHCP clients: the lower half of the network, where no simulated TFTP client lives.
    fn pool(&self) -> (String, String) {
        (format!("10.{}.1.0", self.number), format!("10.{}.127.255", self.number))
    }

    fn ours(&self) -> String {
        let (first, last) = self.pool();
        let mode = if self.kind == Kind::OursProxy { "proxy" } else { "full" };
        let (driver, zero_copy) = match self.kind {
            Kind::OursSplice => ("mio", "off"),
            Kind::OursZeroCopy => ("uring", "always"),
            _ => ("auto", "auto"),
        };
        // Where not even root may lift the limit on pinned memory, only a privilege that the sandbox takes is above it.
        let sandbox = if self.kind == Kind::OursZeroCopy { "off" } else { "auto" };
        let frames = if self.kind == Kind::OursSockets { "off" } else { "auto" };
        let loaders = self.site.folder.join("loaders");
        format!(
            "[server]\nsandbox = \"{sandbox}\"\ninterfaces = [\"lan\"]\nstate_dir = \"{}\"\ncores = 1\ndriver = \"{driver}\"\nzero_copy = \"{zero_copy}\"\n[images]\ndir = \"{}\"\n\
             [loaders]\ndirs = [\"{}\"]\n[tftp]\nframes = \"{frames}\"\n[dhcp]\nmode = \"{mode}\"\n[[dhcp.subnet]]\nnetwork = \"10.{}.0.0/16\"\n\
             range = \"{first}-{last}\"\n[policy]\nmenu_default = \"tiny\"\nmenu_timeout = \"1s\"\n",
            self.own.display(),
            self.images.display(),
            loaders.display(),
            self.number
        ) + &match self.certificate() {
            Some((certificate, key)) => format!(
                "[https]\nlisten = [\"0.0.0.0:{HTTPS_PORT}\"]\ncertificate = \"{}\"\nkey = \"{}\"\n",
                certificate.display(),
                key.display()
            ),
            None => String::new(),
        }
    }

    /// Certificate and key, where there is something to do by HTTPS.
    fn certificate(&self) -> Option<(PathBuf, PathBuf)> {
        let folder = self.site.folder.join(CERTIFICATES);
        let pair = (folder.join("server.pem"), folder.join("server.key"));
        pair.0.exists().then_some(pair)
    }

    fn nginx(&self) -> String {
        let tls = self.certificate().map_or_else(String::new, |(certificate, key)| {
            format!(
                "listen {}:{HTTPS_PORT} ssl reuseport backlog=8192; ssl_certificate {}; ssl_certificate_key {};\n\
                 ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache none; ssl_session_tickets off;\n",
                self.addr,
                certificate.display(),
                key.display()
            )
        });
        format!(
            "daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {own}/nginx.pid; error_log {own}/error.log; \
             user root;\nevents {{ worker_connections 20000; }}\nhttp {{\n\
             access_log off; sendfile on; sendfile_max_chunk 2m; tcp_nopush on; open_file_cache max=100;\n\
             keepalive_requests 10000000; client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
             fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
             server {{ listen {addr}:4433 reuseport backlog=8192; root {root};\n{tls}\
             location = /ipxe {{ return 200 \"{script}\"; }} }} }}\n",
            own = self.own.display(),
            addr = self.addr,
            root = self.site.folder.0.display(),
            script = "#".repeat(SCRIPT_LEN),
        )
    }

    fn dnsmasq(&self) -> Vec<String> {
        let (first, last) = self.pool();
        let mut flags: Vec<String> = [
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--port=0",
            "--user=root",
            "--bind-interfaces",
            "--interface=lan",
            "--except-interface=lo",
            "--no-ping",
            "--quiet-dhcp",
            "--quiet-tftp",
            "--dhcp-authoritative",
            "--dhcp-lease-max=200000",
            "--tftp-max=10000",
            "--enable-tftp",
        ]
        .map(str::to_owned)
        .into();
        flags.push(format!("--tftp-root={}", self.images.display()));
        flags.push(format!("--dhcp-leasefile={}", self.own.join("leases").display()));
        flags.push(format!("--pid-file={}", self.own.join("pid").display()));
        if self.kind == Kind::DnsmasqProxy {
            flags.push(format!("--dhcp-range=10.{}.0.0,proxy,255.255.0.0", self.number));
            flags.extend(
                ["x86PC", "X86-64_EFI", "BC_EFI"].map(|arch| format!("--pxe-service={arch},boot,loader")),
            );
        } else {
            flags.push(format!("--dhcp-range={first},{last},255.255.0.0,1h"));
            flags.push("--dhcp-boot=loader.efi".into());
        }
        flags
    }

    fn kea(&self) -> String {
        let (first, last) = self.pool();
        let persist = self.kind == Kind::KeaPersist;
        let leases = self.own.join("leases.csv");
        let document = serde_json::json!({ "Dhcp4": {
            "interfaces-config": { "interfaces": ["lan"], "dhcp-socket-type": "raw" },
            "lease-database": { "type": "memfile", "persist": persist, "lfc-interval": 0, "name": leases },
            "multi-threading": { "enable-multi-threading": false },
            "valid-lifetime": 3600,
            "sanity-checks": { "lease-checks": "none" },
            "subnet4": [{
                "subnet": format!("10.{}.0.0/16", self.number),
                "pools": [{ "pool": format!("{first} - {last}") }],
                "next-server": self.addr.to_string(),
                "boot-file-name": "loader.efi",
            }],
            "loggers": [{ "name": "kea-dhcp4", "severity": "ERROR", "output_options": [{ "output": "stdout" }] }],
        }});
        document.to_string()
    }
}
