//! `job`.

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand, ValueEnum};

use super::{Listing, identity};
use crate::control::csv::arch;
use crate::jobs::job::{JobId, Stage};
use crate::jobs::rule::{Circuit, Network};
use crate::wire::{MacAddr, Uuid};

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

fn stage(text: &str) -> Result<Stage, String> {
    let known = Stage::ALL.into_iter().find(|stage| stage.word() == text.trim());
    known.ok_or_else(|| format!("expected one of {}", Stage::ALL.map(Stage::word).join(", ")))
}
