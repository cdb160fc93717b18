//! `machine`.

use clap::{Subcommand, ValueEnum};

use super::{Listing, identity};
use crate::wire::{MacAddr, Uuid};

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
