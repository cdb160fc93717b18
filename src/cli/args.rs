//! What may be typed.

mod images;
mod jobs;
mod machines;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

pub(super) use self::images::{
    AccessArg, ImageAdd, ImageLoaderVerb, ImageVerb, ImageVerify, ImportGss, ImportVerb, KindArg, LoaderVerb,
};
pub(super) use self::jobs::{ConfirmBy, JobAction, JobAdd, JobNamed, JobRearm, JobVerb};
pub(super) use self::machines::{MachineNamed, MachineSet, MachineState, MachineVerb};
use super::bench::BenchVerb;
use crate::control::Role;
use crate::control::client::ServerUrl;
use crate::control::csv::arch;
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
                      all. With one it works without a running server too, from what that stored. Exit code 0 when there is a boot to \
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
    /// Copy everything the running server has stored: jobs, machines, boots, tokens, logs
    #[command(
        long_about = "Copy everything the running server has stored into a new file: jobs, machines, boots, tokens and both \
                      logs. Images, leases, certificates and the configuration are files of their own. To put it back: stop \
                      the server, move bootstorm.db and bootstorm.db-wal away, put the file in place of bootstorm.db, owned by \
                      the server's user, and start. What happened since is not in it, so that start cancels the jobs in it that may \
                      wipe a disk: add again what is still wanted, for machines that have not had it.",
        after_help = "Example: bootstorm backup /srv/backup/bootstorm-$(date +%F).db"
    )]
    Backup {
        /// A file that is not there yet; - for standard output
        file: PathBuf,
    },
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
    /// Interface to answer DHCP on; may be repeated [default: every physical one, once it has an IPv4 address]
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
    /// Boots at most, newest first [default: 8; with --pcap 1]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub last: Option<usize>,
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

/// What a machine shows of itself, or a group's name.
fn identity(text: &str) -> Result<String, String> {
    match text.len() <= 128 && !text.trim().is_empty() && !text.contains(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 128 bytes, without control characters".into()),
    }
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
