//! What may be typed.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

use super::bench::BenchVerb;
use crate::control::Role;
use crate::control::client::ServerUrl;
use crate::control::csv::arch;
use crate::files::manifest::cpu_word;
use crate::jobs::job::{JobId, Stage};
use crate::jobs::rule::{Circuit, Network};
use crate::jobs::script;
use crate::telemetry::LogFilter;
use crate::wire::{MacAddr, Uuid};

/// A network boot server: DHCP/proxyDHCP, TFTP, HTTP and iPXE scripts made from jobs.
#[derive(Parser, Debug)]
#[command(
    name = "bootstorm",
    version,
    about,
    after_help = "Exit codes: 0 fine, 1 something is wrong with what was checked or asked for, 2 usage, 3 configuration, \
                  4 permission, 5 runtime.\n\nExample: bootstorm demo"
)]
pub struct Args {
    /// What every verb takes.
    #[command(flatten)]
    pub common: Common,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Common {
    /// Configuration file [default: /etc/bootstorm/bootstorm.toml, if it is there]
    #[arg(
        long,
        global = true,
        help_heading = "For every command",
        value_name = "FILE",
        env = "BOOTSTORM_CONFIG"
    )]
    pub config: Option<PathBuf>,
    /// Folder of state and of the admin socket
    #[arg(long, global = true, help_heading = "For every command", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Folder of images
    #[arg(long, global = true, help_heading = "For every command", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Ask the server at this URL instead of the one on this machine; needs --token
    #[arg(
        long,
        global = true,
        help_heading = "For every command",
        value_name = "URL",
        env = "BOOTSTORM_API"
    )]
    pub api: Option<ServerUrl>,
    /// API token for --api; better given by environment, where other users do not see it
    #[arg(
        long,
        global = true,
        help_heading = "For every command",
        value_name = "TOKEN",
        env = "BOOTSTORM_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run the server
    #[command(after_help = "Example: sudo bootstorm serve --interface eth1 --images ./images")]
    Serve(Serve),
    /// Boot four simulated machines from the real engine on loopback; no root, no configuration
    #[command(after_help = "Example: bootstorm demo --size 1GiB --json")]
    Demo(Demo),
    /// Look at configurations
    #[command(subcommand, after_help = "Example: bootstorm config check /etc/bootstorm/bootstorm.toml")]
    Config(ConfigVerb),
    /// Say what machines are to boot
    #[command(subcommand, after_help = "Example: bootstorm job add winpe-x64 --mac 52:54:00:00:00:01")]
    Job(JobVerb),
    /// Look at machines, let them in or refuse them
    #[command(subcommand, after_help = "Example: bootstorm machine list --is pending")]
    Machine(MachineVerb),
    /// Make and revoke API tokens
    #[command(subcommand, after_help = "Example: bootstorm token add --role operate --name ci --expires 90d")]
    Token(TokenVerb),
    /// See who changed what
    #[command(subcommand, after_help = "Example: bootstorm audit list")]
    Audit(AuditVerb),
    /// Take images in, look at them, check them, remove them
    #[command(subcommand, after_help = "Example: bootstorm image add winpe boot.wim")]
    Image(ImageVerb),
    /// Take over what another product's boot server has
    #[command(subcommand, after_help = "Example: bootstorm import gss /srv/PXE/Images")]
    Import(ImportVerb),
    /// Look at the boot loaders: what they are, who gets them, what will not work
    #[command(subcommand, after_help = "Example: bootstorm loader list")]
    Loader(LoaderVerb),
    /// Look at the scripts machines get
    #[command(subcommand, after_help = "Example: bootstorm script render --mac 52:54:00:00:00:01 --explain")]
    Script(ScriptVerb),
    /// Say where a machine's last boots stand or stopped, and what to do
    #[command(
        long_about = "Say where a machine's last boots stand or stopped, step by step, in one sentence, with the next step \
                      and what its screen is likely to say. Without a machine: the alarms that are on and the last boots of \
                      all. Works without a running server too, from what that stored. Exit code 0 when there is a boot to \
                      show, 1 when the machine was never seen, 2 when nobody is called so.",
        after_help = "Example: bootstorm explain 52:54:00:00:00:01 --last 3\n         bootstorm explain j17 --pcap boot.pcapng"
    )]
    Explain(Explain),
    /// Find what keeps machines from booting: look at the set-up, and boot as one against the running server
    #[command(
        after_help = "Without --as or --relay the set-up is looked at and nothing is sent.\n\nExample: sudo bootstorm \
                      doctor\n         sudo bootstorm doctor --as uefi\n         sudo bootstorm doctor --as bios \
                      --interface eth0 --server 10.0.0.1    (from another host)\n         sudo bootstorm doctor --relay \
                      10.9.0.1    (on the server: as a machine behind that relay)\n\nIt leaves no lease, no machine and no \
                      job behind. Faults and their mending: docs/TROUBLESHOOTING.md."
    )]
    Doctor(Doctor),
    /// Load a server and see what it gives
    #[command(
        subcommand,
        after_help = "Example: bootstorm bench http --server 10.0.0.1 --path /images/winpe/boot.wim"
    )]
    Bench(BenchVerb),
    /// Look at what HTTPS shows
    #[command(subcommand, after_help = "Example: bootstorm https ca > bootstorm-ca.pem")]
    Https(HttpsVerb),
    /// Print shell completions
    #[command(after_help = "Example: bootstorm completions bash > /etc/bash_completion.d/bootstorm")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(after_help = "Example: bootstorm man | man -l -")]
    Man,
}

/// `https`.
#[derive(Subcommand, Debug)]
pub enum HttpsVerb {
    /// Print the own CA's certificate, PEM: what machines, browsers and builds of iPXE (`TRUST=`) are to trust
    #[command(
        after_help = "Example: bootstorm https ca --state /var/lib/bootstorm | openssl x509 -noout -fingerprint"
    )]
    Ca,
}

/// `serve`.
#[derive(clap::Args, Debug, Clone)]
pub struct Serve {
    /// Interface to answer DHCP on; may be repeated [default: every physical one with an IPv4 address]
    #[arg(long, value_name = "IF")]
    pub interface: Vec<String>,
    /// What DHCP does
    #[arg(long, value_enum)]
    pub dhcp: Option<Dhcp>,
    /// Whether io_uring is used as a sender
    #[arg(long, value_enum)]
    pub driver: Option<Driver>,
    /// Loops; 0 is one per available core
    #[arg(long, value_name = "N")]
    pub cores: Option<u16>,
    /// How log lines look; auto is systemd's journal with fields where standard error is it, text elsewhere
    #[arg(long, value_enum, default_value = "auto", env = "BOOTSTORM_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Log level or filter: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "BOOTSTORM_LOG")]
    pub log: LogFilter,
    /// Run without the flight recorder, to measure what it costs
    #[arg(long, hide = true)]
    pub without_recorder: bool,
}

/// `--dhcp`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum Dhcp {
    Proxy,
    Full,
    Off,
}

/// `--driver`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum Driver {
    Auto,
    Uring,
    Mio,
}

/// `--log-format`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum LogFormat {
    Auto,
    Text,
    Json,
    Journal,
}

/// `demo`.
#[derive(clap::Args, Debug, Clone)]
pub struct Demo {
    /// Size of the WIM that is made
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub size: String,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Keep the server up at the end and print its URLs
    #[arg(long)]
    pub stay: bool,
    /// Whether io_uring is used as a sender
    #[arg(long, value_enum, default_value = "auto")]
    pub driver: Driver,
}

/// `config`.
#[derive(Subcommand, Debug)]
pub enum ConfigVerb {
    /// Find every mistake in a file
    #[command(after_help = "Example: bootstorm config check /etc/bootstorm/bootstorm.toml")]
    Check {
        /// The file [default: the one of --config]
        file: Option<PathBuf>,
        /// Print the problems as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration: what is set, or with --effective every key
    #[command(after_help = "Example: bootstorm config show --effective")]
    Show {
        /// With defaults, and where each value came from
        #[arg(long)]
        effective: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have the running server read its configuration again: whole, or not at all
    #[command(after_help = "Example: bootstorm config reload")]
    Reload {
        /// What changed, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a commented example with every key
    #[command(after_help = "Example: bootstorm config example > bootstorm.toml")]
    Example,
}

/// `--json` and `--watch` of lists.
#[derive(clap::Args, Debug, Clone, Copy)]
pub struct Listing {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Go on looking, and show the list again whenever it changes; Ctrl-C ends it
    #[arg(long)]
    pub watch: bool,
}

/// `job`.
#[derive(Subcommand, Debug)]
pub enum JobVerb {
    /// Say what machines boot next: one, those that meet a rule, or a whole list
    #[command(
        after_help = "Example: bootstorm job add winpe-x64 --mac 52:54:00:00:00:01 --expires 12h\n         bootstorm job \
                      add wipe --subnet 10.77.0.0/24 --arch uefi-x64 --allow-rule\n         bootstorm job add \
                      winpe report --serial ABC123 --then\n         bootstorm job add --csv hall-3.csv\n\nThe first row of a CSV file names its columns, such as image,mac,expires; \
                      flags fill in what the rows leave out. All rows are added, or none."
    )]
    Add(Box<JobAdd>),
    /// List jobs
    #[command(after_help = "Example: bootstorm job list --stage armed,offered --watch")]
    List {
        /// Only jobs in these stages
        #[arg(long, value_name = "STAGE,...", value_delimiter = ',', value_parser = stage)]
        stage: Vec<Stage>,
        /// Only jobs that boot this image
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
        /// Only jobs that name this machine
        #[arg(long, value_name = "MAC|UUID|SERIAL|ASSET")]
        machine: Option<String>,
        /// Only jobs that can still give a machine a boot
        #[arg(long)]
        live: bool,
        /// How
        #[command(flatten)]
        listing: Listing,
    },
    /// Show one job
    #[command(after_help = "Example: bootstorm job show j17")]
    Show(JobNamed),
    /// Cancel a job
    #[command(after_help = "Example: bootstorm job cancel j17")]
    Cancel(JobNamed),
    /// Start a job that is over again, with all its attempts
    #[command(
        after_help = "Example: bootstorm job rearm j17\n         bootstorm job rearm j17 --machine 52:54:00:12:34:56"
    )]
    Rearm(JobRearm),
    /// Confirm a running job that no call-back has confirmed
    #[command(after_help = "Example: bootstorm job confirm j17")]
    Confirm(JobNamed),
}

/// A job by its id.
#[derive(clap::Args, Debug)]
pub struct JobNamed {
    /// Job id such as j17
    pub id: JobId,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `job rearm`.
#[derive(clap::Args, Debug)]
pub struct JobRearm {
    /// Job id such as j17
    pub id: JobId,
    /// Of a rule's job: give it to this machine alone once more (its address, UUID, serial, name or id)
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<String>,
    /// Of a rule's destructive job: to every machine that had it
    #[arg(long, conflicts_with = "machine")]
    pub all: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `job add`.
#[derive(clap::Args, Debug)]
#[command(group(ArgGroup::new("what").args(["image_name", "image", "action"])))]
#[command(group(ArgGroup::new("exact").args(["mac", "uuid", "serial", "asset", "any"])))]
#[command(group(ArgGroup::new("whom").required(true).multiple(true).args([
    "mac", "uuid", "serial", "asset", "any", "any_unknown", "group", "subnet", "circuit", "arch", "manufacturer", "product",
    "csv",
])))]
pub struct JobAdd {
    /// Image to boot; several are a sequence of boots
    #[arg(value_name = "IMAGE", required_unless_present_any = ["image", "action", "csv"])]
    pub image_name: Vec<String>,
    /// Image to boot; may be repeated
    #[arg(long = "image", value_name = "IMAGE")]
    pub image: Vec<String>,
    /// Something else than an image
    #[arg(long, value_enum)]
    pub action: Option<JobAction>,
    /// The machine with this MAC address
    #[arg(long)]
    pub mac: Option<MacAddr>,
    /// The machine with this SMBIOS UUID
    #[arg(long)]
    pub uuid: Option<Uuid>,
    /// The machine with this SMBIOS serial
    #[arg(long, value_parser = identity)]
    pub serial: Option<String>,
    /// The machine with this asset tag
    #[arg(long, value_parser = identity)]
    pub asset: Option<String>,
    /// Every machine that no other job is for
    #[arg(long)]
    pub any: bool,
    /// Rule: machines that nobody registered and that no job names
    #[arg(long, conflicts_with = "exact")]
    pub any_unknown: bool,
    /// Rule: machines of this group
    #[arg(long, value_parser = identity, conflicts_with = "exact")]
    pub group: Option<String>,
    /// Rule: machines of this network
    #[arg(long, value_name = "NETWORK", conflicts_with = "exact")]
    pub subnet: Option<Network>,
    /// Rule: machines behind this port of a relay (option 82, circuit id; 0x and digits for bytes)
    #[arg(long, conflicts_with = "exact")]
    pub circuit: Option<Circuit>,
    /// Rule: machines of this architecture (a number, bios, uefi-x64, uefi-ia32, uefi-arm64); may be repeated
    #[arg(long, value_parser = arch, conflicts_with = "exact")]
    pub arch: Vec<u16>,
    /// Rule: machines of this SMBIOS manufacturer
    #[arg(long, value_parser = identity, conflicts_with = "exact")]
    pub manufacturer: Option<String>,
    /// Rule: machines of this SMBIOS product
    #[arg(long, value_parser = identity, conflicts_with = "exact")]
    pub product: Option<String>,
    /// A file of jobs, up to 10,000: all are added, or none (- reads standard input)
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "exact", "any_unknown", "group", "subnet", "circuit", "arch", "manufacturer", "product",
    ])]
    pub csv: Option<PathBuf>,
    /// One boot, then the local disk (the default)
    #[arg(long, conflicts_with = "always")]
    pub once: bool,
    /// At every boot
    #[arg(long)]
    pub always: bool,
    /// Boots that may stop half-way until the job counts as failed
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub attempts: u32,
    /// How long the job stays armed, such as 12h
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
    /// The time in which too many boots that come to nothing stop the job
    #[arg(long, value_name = "TIME")]
    pub window: Option<String>,
    /// Between equally specific jobs the higher number wins
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// What ends a boot well: the image handed over, or a call-back of what it booted
    #[arg(long, value_enum, default_value = "image")]
    pub confirm: ConfirmBy,
    /// A destructive image may go to every machine that the rule matches
    #[arg(long)]
    pub allow_rule: bool,
    /// Cancel the live jobs this machine has, with what follows them, instead of being refused
    #[arg(long, conflicts_with = "then")]
    pub replace: bool,
    /// Follow the live job this machine has, instead of being refused
    #[arg(long)]
    pub then: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `--confirm`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum ConfirmBy {
    Image,
    Callback,
}

/// `--action`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum JobAction {
    Local,
    Menu,
    Wait,
    Shell,
}

/// `machine`.
#[derive(Subcommand, Debug)]
pub enum MachineVerb {
    /// List machines on record
    #[command(after_help = "Example: bootstorm machine list --is pending --watch")]
    List {
        /// Only machines of this state
        #[arg(long, value_enum, value_name = "STATE")]
        is: Option<MachineState>,
        /// Only machines of this group
        #[arg(long)]
        group: Option<String>,
        /// How
        #[command(flatten)]
        listing: Listing,
    },
    /// Show one machine: what it is made of, and what is said of it
    #[command(after_help = "Example: bootstorm machine show 52:54:00:00:00:01")]
    Show(MachineNamed),
    /// Register a machine, or change its name, groups and identities
    #[command(after_help = "Example: bootstorm machine set 52:54:00:00:00:01 --name bench-7 --group lab")]
    Set(Box<MachineSet>),
    /// Let a machine in that waits for approval
    #[command(after_help = "Example: bootstorm machine approve 52:54:00:00:00:01")]
    Approve(MachineNamed),
    /// Refuse a machine: no loader, no script, no job
    #[command(after_help = "Example: bootstorm machine reject m17")]
    Reject(MachineNamed),
    /// Forget a machine; what its jobs denied stays denied, and a rejection is forgotten with it
    #[command(
        after_help = "Example: bootstorm machine forget m17\n\nA rejected machine that is forgotten is an unknown one \
                            again: to keep it out, leave it rejected."
    )]
    Forget(MachineNamed),
    /// Make two machines one: what either was refused holds for both
    #[command(after_help = "Example: bootstorm machine merge m17 m18 --why \"second network card\"")]
    Merge {
        /// The machine that stays: m17, or one of its identities
        machine: String,
        /// The one that becomes a part of it
        other: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a merged part out again, as the machine it was
    #[command(after_help = "Example: bootstorm machine split m17 m18")]
    Split {
        /// The machine: m17, or one of its identities
        machine: String,
        /// The part that leaves: m18
        part: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `--is`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum MachineState {
    Known,
    Pending,
    Approved,
    Rejected,
}

impl MachineState {
    /// The API's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }
}

/// A machine by its number or an identity.
#[derive(clap::Args, Debug)]
pub struct MachineNamed {
    /// m17, or a MAC address, UUID, serial, asset tag or name
    pub machine: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `machine set`.
#[derive(clap::Args, Debug)]
pub struct MachineSet {
    /// m17, or an identity; a MAC address or UUID that is not on record registers a new machine
    pub machine: String,
    /// Its name; empty takes it away
    #[arg(long)]
    pub name: Option<String>,
    /// A group it is in; may be repeated, and replaces the groups it had
    #[arg(long)]
    pub group: Vec<String>,
    /// It is in no group any more
    #[arg(long, conflicts_with = "group")]
    pub no_group: bool,
    /// The loader its firmware is given, where it fits, before the image's and the subnet's; empty takes it away
    #[arg(long, value_name = "NAME")]
    pub loader: Option<String>,
    /// A further MAC address of it; may be repeated
    #[arg(long)]
    pub mac: Vec<MacAddr>,
    /// Its SMBIOS UUID
    #[arg(long)]
    pub uuid: Option<Uuid>,
    /// Its SMBIOS serial
    #[arg(long, value_parser = identity)]
    pub serial: Option<String>,
    /// Its asset tag
    #[arg(long, value_parser = identity)]
    pub asset: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `token`.
#[derive(Subcommand, Debug)]
pub enum TokenVerb {
    /// Make a token and print it: it is shown this once
    #[command(after_help = "Example: bootstorm token add --role read --name grafana --expires 365d")]
    Add {
        /// What it may do: read looks, operate orders jobs and lets machines in, admin does everything
        #[arg(long)]
        role: Role,
        /// What it is for
        #[arg(long, default_value = "unnamed")]
        name: String,
        /// How long it works, such as 90d [default: until it is revoked]
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List tokens, without the tokens themselves
    #[command(after_help = "Example: bootstorm token list")]
    List {
        /// How
        #[command(flatten)]
        listing: Listing,
    },
    /// Revoke a token: it stops working at once
    #[command(after_help = "Example: bootstorm token revoke 1a2b3c4d")]
    Revoke {
        /// The token's id: the eight digits after bst-
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `audit`.
#[derive(Subcommand, Debug)]
pub enum AuditVerb {
    /// List who changed what, newest first
    #[command(after_help = "Example: bootstorm audit list --subject j17")]
    List {
        /// Only entries about this: a job's id, a machine's number
        #[arg(long)]
        subject: Option<String>,
        /// Entries at most
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
        limit: u64,
        /// How
        #[command(flatten)]
        listing: Listing,
    },
    /// Check that no entry was changed or removed
    #[command(after_help = "Example: bootstorm audit verify")]
    Verify {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `image`.
#[derive(Subcommand, Debug)]
pub enum ImageVerb {
    /// Take files in as an image, or as the next version of one
    #[command(
        after_help = "Example: bootstorm image add winpe boot.wim startnet.cmd --title \"Windows PE\"\n         bootstorm \
                      image add winpe boot.wim --update\n         bootstorm image add rescue ./live-build/ --args \"boot=live \
                      quiet\"\n\nFiles are copied, checked and hashed first, and then put in place in one step; downloads that run end \
                      with the version they began with. A damaged file is refused with exit code 1 and one line that says why; \
                      one that is sound but will give trouble is taken, with a line that begins with warning:."
    )]
    Add(Box<ImageAdd>),
    /// List images, with why some cannot boot
    #[command(after_help = "Example: bootstorm image list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one image with its files, its WIMs and its version
    #[command(after_help = "Example: bootstorm image show winpe-x64")]
    Show {
        /// Name
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether an image boots by iPXE or by its folder's own boot program
    #[command(
        subcommand,
        after_help = "Example: bootstorm image loader disable MenuOption128\n\nThe switch is files in the image's folder, as in \
                      GSS and DS: zipxe.0 for BIOS, ipxe64.efi and ipxe32.efi for UEFI machines. A running server shows a \
                      change at the machines' next packet."
    )]
    Loader(ImageLoaderVerb),
    /// Read images again, and compare every byte with what was taken in
    #[command(
        after_help = "Example: bootstorm image verify winpe\n         bootstorm image verify --all\n\nExit code 1 and a line \
                      for every file that is not as it was. A run that was broken off goes on where it was."
    )]
    Verify(ImageVerify),
    /// List the versions of an image, the one that is served first
    #[command(after_help = "Example: bootstorm image versions winpe")]
    Versions {
        /// Name
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve an earlier version of an image again
    #[command(
        after_help = "Example: bootstorm image rollback winpe\n         bootstorm image rollback winpe 3\n\nThe version that \
                      was served until then is kept, so that this can be taken back too."
    )]
    Rollback {
        /// Name
        name: String,
        /// The version [default: the newest one before the one that is served]
        version: Option<u32>,
        /// Also one whose files are not what they were when they were taken in
        #[arg(long)]
        force: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image with all its versions, or one earlier version
    #[command(
        after_help = "Example: bootstorm image remove old-winpe\n         bootstorm image remove winpe --version 3\n\nAn image \
                      that a live job boots is not removed: cancel the job first, or say --force."
    )]
    Remove {
        /// Name
        name: String,
        /// Only this earlier version
        #[arg(long, value_name = "N")]
        version: Option<u32>,
        /// Although jobs need it: their machines are told that it is not there
        #[arg(long)]
        force: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `image add`.
#[derive(clap::Args, Debug)]
pub struct ImageAdd {
    /// The image's name: the name of its folder, and a part of its URLs
    pub name: String,
    /// Files, and folders whose content is meant
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The new version holds just these files; settings and answer files stay (the default)
    #[arg(long, conflicts_with = "update")]
    pub replace: bool,
    /// The other files of the version before stay, too
    #[arg(long)]
    pub update: bool,
    /// Only if there is no image of that name
    #[arg(long, conflicts_with_all = ["replace", "update"])]
    pub new: bool,
    /// How many earlier versions are kept for a way back
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub keep: usize,
    /// Shown to people in lists and menus, up to 200 bytes
    #[arg(long, value_parser = title)]
    pub title: Option<String>,
    /// How it boots [default: seen from the files]
    #[arg(long, value_enum)]
    pub kind: Option<KindArg>,
    /// Processor it is built for: x86, x64, arm32, arm64 [default: seen from the files]
    #[arg(long, value_parser = processor)]
    pub arch: Option<String>,
    /// Kernel or wimboot arguments
    #[arg(long, allow_hyphen_values = true)]
    pub args: Option<String>,
    /// The boot files, main one first [default: seen from their names]
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    pub boot_files: Option<Vec<String>>,
    /// Which image of the WIM is booted [default: the WIM's own boot index]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub index: Option<u32>,
    /// It may wipe a disk: boots of it pass the point of no return once (--destructive=false takes that back)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub destructive: Option<bool>,
    /// Who may fetch its files: anyone who reaches the port, or only a boot with its token
    #[arg(long, value_enum)]
    pub access: Option<AccessArg>,
    /// The sub-menu it is shown in
    #[arg(long)]
    pub group: Option<String>,
    /// The key that chooses it in the menu
    #[arg(long, value_parser = key)]
    pub key: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `--kind`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum KindArg {
    Winpe,
    Linux,
    Iso,
    Efi,
    Script,
}

/// `--access`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum AccessArg {
    Open,
    Boot,
}

/// `image verify`.
#[derive(clap::Args, Debug)]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["name", "all"])))]
pub struct ImageVerify {
    /// The image; its version that is served, and with --all every one that is kept
    pub name: Option<String>,
    /// Every image, and every version that is kept
    #[arg(long)]
    pub all: bool,
    /// What is there now is what is wanted: take it down as such
    #[arg(long)]
    pub accept: bool,
    /// Begin anew instead of going on with a run that was broken off
    #[arg(long)]
    pub restart: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `import`.
#[derive(Subcommand, Debug)]
pub enum ImportVerb {
    /// Read a PXE images tree of Ghost Solution Suite or Deployment Solution
    #[command(
        after_help = "Example: bootstorm import gss /mnt/express/PXE\n         bootstorm import gss /srv/PXE/Images --serve\n\nSays \
                      what each folder holds, whether its iPXE is on, and what cannot be served and why. Nothing in the tree is \
                      changed."
    )]
    Gss(ImportGss),
}

/// `import gss`.
#[derive(clap::Args, Debug)]
pub struct ImportGss {
    /// The images folder (SBS/Images, PXE/Images), or one above it
    pub dir: PathBuf,
    /// Copy its folders into the images folder; one whose name is taken is left out
    #[arg(long, conflicts_with = "serve")]
    pub copy: bool,
    /// Serve it where it lies: writes it into [images] trees of the configuration file
    #[arg(long)]
    pub serve: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `loader`.
#[derive(Subcommand, Debug)]
pub enum LoaderVerb {
    /// List the loader folders' files with version, features and signature, and warn of what will not work
    #[command(after_help = "Example: bootstorm loader list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one loader
    #[command(after_help = "Example: bootstorm loader show snponly.efi")]
    Show {
        /// Its name below the loader folders
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `image loader`.
#[derive(Subcommand, Debug)]
pub enum ImageLoaderVerb {
    /// Switch iPXE on: loaders that were set aside come back, missing ones are copied from the loader folders
    #[command(after_help = "Example: bootstorm image loader enable MenuOption128")]
    Enable {
        /// The image
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Switch iPXE off: the loaders in the folder are set aside, and machines boot by the folder's own program over TFTP
    #[command(after_help = "Example: bootstorm image loader disable MenuOption128")]
    Disable {
        /// The image
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `script`.
#[derive(Subcommand, Debug)]
pub enum ScriptVerb {
    /// Print the exact script a machine would get now; changes nothing
    ///
    /// The tokens in its URLs open nothing: they stand for those that the machine's own script would have, and a boot
    /// from a copy of the script gets no file.
    #[command(
        after_help = "Example: bootstorm script render --mac 52:54:00:00:00:01 --platform efi --explain"
    )]
    Render(Box<Render>),
}

/// `script render`.
#[derive(clap::Args, Debug)]
pub struct Render {
    /// MAC address
    #[arg(long)]
    pub mac: Option<MacAddr>,
    /// SMBIOS UUID
    #[arg(long)]
    pub uuid: Option<Uuid>,
    /// SMBIOS serial
    #[arg(long)]
    pub serial: Option<String>,
    /// Asset tag
    #[arg(long)]
    pub asset: Option<String>,
    /// SMBIOS manufacturer
    #[arg(long)]
    pub manufacturer: Option<String>,
    /// SMBIOS product
    #[arg(long)]
    pub product: Option<String>,
    /// Architecture: option 93 as a number, or bios, uefi-x64, uefi-ia32, uefi-arm64
    #[arg(long, value_parser = arch)]
    pub arch: Option<u16>,
    /// pcbios or efi
    #[arg(long)]
    pub platform: Option<String>,
    /// Which rule chose it and why the others lost
    #[arg(long)]
    pub explain: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `explain`.
#[derive(clap::Args, Debug)]
pub struct Explain {
    /// MAC address in any form, UUID, job number (j17) or name of a machine; without one: the alarms and the last boots
    pub machine: Option<String>,
    /// Boots at most, newest first
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub last: usize,
    /// Write the control packets of the last boot (--last 2: of two) to this file, for Wireshark; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub pcap: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `doctor`.
#[derive(clap::Args, Debug, Clone)]
pub struct Doctor {
    /// Boot as such a machine, hop by hop
    #[arg(long = "as", value_enum, value_name = "FIRMWARE")]
    pub as_kind: Option<FirmwareKind>,
    /// Boot as a machine behind the relay with this address: on the server's host, or on the relay itself
    #[arg(long, value_name = "IP")]
    pub relay: Option<std::net::Ipv4Addr>,
    /// Interface of the machine [default: the server's]
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// The server's address, from another host [default: this host's, or whoever answers]
    #[arg(long, value_name = "IP")]
    pub server: Option<std::net::Ipv4Addr>,
    /// Machines have Secure Boot on: unsigned loaders are faults
    #[arg(long)]
    pub secure_boot: bool,
    /// Judge this certificate (PEM) as iPXE would
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Also what is as it should be
    #[arg(long)]
    pub verbose: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `--as`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum FirmwareKind {
    Bios,
    Uefi,
    Http,
    Ipxe,
}

// What a value may be, said beside its flag. An empty text takes a setting away.

fn processor(text: &str) -> Result<String, String> {
    match text.is_empty() || cpu_word(text).is_some() {
        true => Ok(text.to_owned()),
        false => Err("expected x86, x64, arm32 or arm64".into()),
    }
}

fn key(text: &str) -> Result<String, String> {
    match text.is_empty() || script::menu_key(&text.to_ascii_lowercase()).is_some() {
        true => Ok(text.to_owned()),
        false => Err(format!("expected one letter or digit that is none of {}", script::MENU_KEYS_RESERVED)),
    }
}

fn title(text: &str) -> Result<String, String> {
    match text.len() <= 200 && !text.contains(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("expected up to 200 bytes, without control characters".into()),
    }
}

/// What a machine shows of itself, or a group's name.
fn identity(text: &str) -> Result<String, String> {
    match text.len() <= 128 && !text.trim().is_empty() && !text.contains(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 128 bytes, without control characters".into()),
    }
}

fn stage(text: &str) -> Result<Stage, String> {
    let known = Stage::ALL.into_iter().find(|stage| stage.word() == text.trim());
    known.ok_or_else(|| format!("expected one of {}", Stage::ALL.map(Stage::word).join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_verb_takes_the_name_of_a_flag_of_every_command_for_its_own() {
        let whole = Args::command();
        let common: Vec<_> = whole.get_arguments().filter(|arg| arg.is_global_set()).collect();
        assert!(common.iter().any(|arg| arg.get_long() == Some("state")));
        fn walk(command: &clap::Command, common: &[&clap::Arg]) {
            for sub in command.get_subcommands() {
                for arg in sub.get_arguments() {
                    let same = |other: &&&clap::Arg| {
                        other.get_id() == arg.get_id() || other.get_long() == arg.get_long()
                    };
                    // Two arguments of one id read each other's values, and panic where their types differ.
                    let taken = common.iter().filter(|other| other.get_long().is_some()).find(same);
                    assert!(taken.is_none(), "{} --{:?}", sub.get_name(), arg.get_id());
                }
                walk(sub, common);
            }
        }
        walk(&whole, &common);
    }

    #[test]
    fn machines_are_listed_by_their_state_with_the_state_folder_named_at_either_place() {
        for text in [
            "bootstorm --state /s machine list --is pending",
            "bootstorm machine list --is pending --state /s",
        ] {
            let args = Args::try_parse_from(text.split(' ')).unwrap();
            assert_eq!(args.common.state, Some("/s".into()));
            assert!(matches!(
                args.verb,
                Verb::Machine(MachineVerb::List { is: Some(MachineState::Pending), .. })
            ));
        }
        assert!(Args::try_parse_from(["bootstorm", "machine", "list", "--is", "foo"]).is_err());
    }

    #[test]
    fn every_verb_shows_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                assert!(
                    sub.get_after_help().is_some_and(|help| help.to_string().contains("Example: ")),
                    "{path}"
                );
                walk(sub, &path);
            }
        }
        walk(&Args::command(), "bootstorm");
    }

    #[test]
    fn a_job_needs_one_thing_and_one_machine() {
        let parse = |text: &str| Args::try_parse_from(text.split(' ')).is_ok();
        assert!(parse("bootstorm job add winpe --mac 52:54:00:00:00:01"));
        assert!(parse(
            "bootstorm job add --image winpe --uuid 4c4c4544-0042-3510-8052-b4c04f564231 --state /x"
        ));
        assert!(parse("bootstorm job add --action local --serial ABC --always"));
        assert!(!parse("bootstorm job add winpe"));
        assert!(!parse("bootstorm job add --mac 52:54:00:00:00:01"));
        assert!(!parse("bootstorm job add winpe --action local --mac 52:54:00:00:00:01"));
        assert!(parse("bootstorm job add winpe report --mac 52:54:00:00:00:01 --then"));
        assert!(!parse("bootstorm job add winpe --mac 52:54:00:00:00:01 --then --replace"));
        assert!(!parse("bootstorm job add winpe --mac 52:54:00:00:00:01 --serial x"));
        assert!(!parse("bootstorm job add winpe --mac nonsense"));
        assert!(!parse("bootstorm job add winpe --mac 52:54:00:00:00:01 --once --always"));
        assert!(parse("bootstorm job add winpe --subnet 10.77.0.0/24 --arch uefi-x64 --arch 9 --allow-rule"));
        assert!(!parse("bootstorm job add winpe --subnet 10.77.0.1/24"));
        assert!(!parse("bootstorm job add winpe --group lab --mac 52:54:00:00:00:01"));
        assert!(parse("bootstorm job add --csv jobs.csv") && parse("bootstorm job add winpe --csv jobs.csv"));
        assert!(!parse("bootstorm job add --csv jobs.csv --mac 52:54:00:00:00:01"));
        assert!(parse("bootstorm job list --api http://127.0.0.1:8081 --token x"));
    }

    #[test]
    fn what_a_flag_may_not_be_is_said_of_the_flag() {
        for (line, words) in [
            ("image add x f --arch sparc", ["--arch", "x86, x64, arm32 or arm64"]),
            ("image add x f --key ll", ["--key", "one letter or digit"]),
            ("job list --stage armed,foo", ["--stage", "armed, offered"]),
            ("job show foo", ["'foo' for '<ID>'", "j17"]),
            ("job add x --serial  ", ["--serial", "1 to 128 bytes"]),
            ("job add x", ["--mac", "--subnet"]),
            ("image verify", ["NAME", "--all"]),
        ] {
            let args = std::iter::once("bootstorm").chain(line.split(' '));
            let said = Args::try_parse_from(args).unwrap_err().to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{line}: {said}");
        }
        let long = format!("--title={}", "x".repeat(201));
        assert!(Args::try_parse_from(["bootstorm", "image", "add", "x", "f", &long]).is_err());
        let parse = |text: &str| Args::try_parse_from(text.split(' ')).is_ok();
        assert!(parse("bootstorm job list --stage armed,offered") && parse("bootstorm job show 17"));
        assert!(parse("bootstorm image add x f --arch amd64 --key W --title="));
    }

    #[test]
    fn images_are_added_with_files_and_verified_by_name_or_all() {
        let parse = |text: &str| Args::try_parse_from(text.split(' ')).is_ok();
        assert!(parse("bootstorm image add pe boot.wim --destructive --access boot --args -x --index 2"));
        assert!(parse("bootstorm image add pe boot.wim --destructive=false --keep 0 --boot-files a,b"));
        assert!(!parse("bootstorm image add pe") && !parse("bootstorm image add pe x --index 0"));
        assert!(
            !parse("bootstorm image add pe x --update --replace")
                && !parse("bootstorm image add pe x --kind y")
        );
        assert!(parse("bootstorm image verify pe --all") && parse("bootstorm image verify --all"));
        assert!(!parse("bootstorm image verify"));
        assert!(
            parse("bootstorm image rollback pe 3") && parse("bootstorm image remove pe --version 2 --force")
        );
    }
}
