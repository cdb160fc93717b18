//! What may be typed.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

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
    #[arg(long, global = true, value_name = "FILE", env = "BOOTSTORM_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of state and of the admin socket
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Folder of images
    #[arg(long, global = true, value_name = "DIR")]
    pub images: Option<PathBuf>,
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
    /// Look at the image library
    #[command(subcommand, after_help = "Example: bootstorm image list --images ./images")]
    Image(ImageVerb),
    /// Look at the scripts machines get
    #[command(subcommand, after_help = "Example: bootstorm script render --mac 52:54:00:00:00:01 --explain")]
    Script(ScriptVerb),
    /// Show the last boots of a machine as timelines
    #[command(after_help = "Example: bootstorm explain 52:54:00:00:00:01")]
    Explain(Explain),
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
    /// How log lines look
    #[arg(long, value_enum, default_value = "text", env = "BOOTSTORM_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Log level or filter: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "BOOTSTORM_LOG")]
    pub log: String,
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
    Text,
    Json,
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
    /// Print the configuration
    #[command(after_help = "Example: bootstorm config show --effective")]
    Show {
        /// With defaults, and where each value came from
        #[arg(long)]
        effective: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a commented example with every key
    #[command(after_help = "Example: bootstorm config example > bootstorm.toml")]
    Example,
}

/// `job`.
#[derive(Subcommand, Debug)]
pub enum JobVerb {
    /// Say what a machine boots next
    #[command(after_help = "Example: bootstorm job add winpe-x64 --mac 52:54:00:00:00:01 --expires 12h")]
    Add(Box<JobAdd>),
    /// List jobs
    #[command(after_help = "Example: bootstorm job list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one job
    #[command(after_help = "Example: bootstorm job show j17")]
    Show {
        /// Job id
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Start a job that is over again, for the machine's next boot
    #[command(after_help = "Example: bootstorm job rearm j17")]
    Rearm {
        /// Job id
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Cancel a job
    #[command(after_help = "Example: bootstorm job cancel j17")]
    Cancel {
        /// Job id
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `job add`.
#[derive(clap::Args, Debug)]
#[command(group(ArgGroup::new("what").required(true).args(["image_name", "image", "action"])))]
#[command(group(ArgGroup::new("whom").required(true).args(["mac", "uuid", "serial", "asset", "any_unknown"])))]
pub struct JobAdd {
    /// Image to boot
    #[arg(value_name = "IMAGE")]
    pub image_name: Option<String>,
    /// Image to boot
    #[arg(long = "image", value_name = "IMAGE")]
    pub image: Option<String>,
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
    #[arg(long)]
    pub serial: Option<String>,
    /// The machine with this asset tag
    #[arg(long)]
    pub asset: Option<String>,
    /// Every machine that no other job is for
    #[arg(long)]
    pub any_unknown: bool,
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
    /// Between equally specific jobs the higher number wins
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// Cancel the job this machine has
    #[arg(long)]
    pub replace: bool,
    /// Let a rule send an image that may wipe a disk to every machine it matches
    #[arg(long)]
    pub allow_rule: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
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

/// `image`.
#[derive(Subcommand, Debug)]
pub enum ImageVerb {
    /// List images, with why some cannot boot
    #[command(after_help = "Example: bootstorm image list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one image with its files
    #[command(after_help = "Example: bootstorm image show winpe-x64")]
    Show {
        /// Name
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

/// Option 93 as a number or one of the words lists show.
fn arch(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let word = || (0..0x30).find(|code| crate::wire::Arch(*code).word() == text);
    number
        .or_else(word)
        .ok_or_else(|| "expected a number such as 7, or bios, uefi-x64, uefi-ia32, uefi-arm64".into())
}

/// `explain`.
#[derive(clap::Args, Debug)]
pub struct Explain {
    /// MAC address or UUID
    pub machine: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
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
        assert!(!parse("bootstorm job add winpe --mac 52:54:00:00:00:01 --serial x"));
        assert!(!parse("bootstorm job add winpe --mac nonsense"));
        assert!(!parse("bootstorm job add winpe --mac 52:54:00:00:00:01 --once --always"));
    }

    #[test]
    fn architectures_by_number_and_word() {
        assert_eq!(arch("7"), Ok(7));
        assert_eq!(arch("0x0b"), Ok(11));
        assert_eq!(arch("uefi-x64"), Ok(7));
        assert_eq!(arch("bios"), Ok(0));
        assert!(arch("toaster").is_err());
    }
}
