//! What was seen of a boot. Evidence moves jobs ([`Book::note`](super::book::Book::note)) and is what timelines
//! are made of (`history`); it is sent by whoever saw it and never asks for anything.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::job::{Job, JobId, Stage, unix_seconds};
use super::lifecycle::LOOP_BOOTS;
use super::machine::Ident;
use super::token::BootId;
use crate::wire::capture::Packet;
use crate::wire::{Arch, MacAddr, Uuid};

/// One thing seen of one machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Evidence {
    /// When.
    #[serde(with = "unix_seconds")]
    pub at: SystemTime,
    /// The machine's hardware address, if the exchange or its token names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The machine's UUID, if the exchange names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// The serial, if a script request shows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The asset tag, if a script request shows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset: Option<String>,
    /// The boot, from the script answer or its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootId>,
    /// Where it came from or was sent to. Never an identity, only shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Where the machine's last DHCP exchange left it, if that is not where this came from: somebody asked in its name, or it
    /// asks through a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Ipv4Addr>,
    /// How a transfer by TFTP went, for evidence of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferFacts>,
    /// Why a script says what it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// The packets that show it, for whoever keeps them: no file's bytes, no token.
    #[serde(skip)]
    pub packets: Vec<Packet>,
    /// What.
    pub seen: Seen,
}

/// Why a machine was given the script that it was given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Why {
    /// What decided.
    pub cause: Cause,
    /// What the job says of itself, or why its image is not booted, in plain words; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub said: String,
}

/// What decided over a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A job.
    Job,
    /// Its job is over: the machine had it.
    HadItsJob,
    /// Its job has failed: too many boots stopped before they ran, or its last one is under way.
    AttemptsUsed,
    /// Its job was stopped because the machine started over and over.
    Looped,
    /// No job wants it: the policy for such machines.
    Policy,
    /// An operator refuses the machine.
    Rejected,
    /// The policy excludes its address.
    Excluded,
}

impl Cause {
    /// The cause that a job has which is over with its machine, or is on its last attempt.
    pub fn of_done(job: &Job) -> Self {
        if job.boots >= LOOP_BOOTS {
            return Self::Looped;
        }
        match job.stage {
            Stage::Failed | Stage::Fetching => Self::AttemptsUsed,
            Stage::Armed
            | Stage::Offered
            | Stage::Running
            | Stage::Confirmed
            | Stage::Expired
            | Stage::Cancelled => Self::HadItsJob,
        }
    }
}

/// How one transfer by TFTP went: what tells a bad network from a slow machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TransferFacts {
    /// Block length agreed on.
    pub blksize: u16,
    /// Window agreed on, in blocks.
    pub windowsize: u16,
    /// From the request to the end, in milliseconds.
    pub took_ms: u32,
    /// The round trip last measured, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// Times something was sent again: a loss, or a machine that was busy.
    pub resends: u16,
    /// How its blocks left.
    pub way: Way,
}

/// How blocks leave, named as the counters name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Frames past the IP stack.
    Frame,
    /// A window in one segmented send.
    Segments,
    /// Datagrams one by one.
    Datagram,
}

impl Way {
    /// The word counters and timelines use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Segments => "segments",
            Self::Datagram => "datagram",
        }
    }
}

impl Evidence {
    /// Something seen at `at` of a machine not yet named; fill in what is known.
    pub fn new(at: SystemTime, seen: Seen) -> Self {
        Self {
            at,
            mac: None,
            uuid: None,
            serial: None,
            asset: None,
            boot: None,
            address: None,
            elsewhere: None,
            transfer: None,
            why: None,
            packets: Vec::new(),
            seen,
        }
    }

    /// The same without its packets, for who does not keep them.
    pub fn without_packets(&self) -> Self {
        Self {
            packets: Vec::new(),
            serial: self.serial.clone(),
            asset: self.asset.clone(),
            why: self.why.clone(),
            seen: self.seen.clone(),
            ..*self
        }
    }

    /// Every identity it shows.
    pub fn presented(&self) -> Vec<Ident> {
        let text = |text: &Option<String>| {
            text.as_deref().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let all = [
            self.mac.map(Ident::Mac),
            self.uuid.map(Ident::Uuid),
            text(&self.serial).map(Ident::Serial),
            text(&self.asset).map(Ident::Asset),
        ];
        all.into_iter().flatten().collect()
    }

    /// The job the evidence is about, if it names one.
    pub fn job(&self) -> Option<JobId> {
        match &self.seen {
            Seen::ScriptAsked { job, .. }
            | Seen::FileStarted { job, .. }
            | Seen::FileProgress { job, .. }
            | Seen::LastPieceSent { job, .. }
            | Seen::FileDone { job, .. }
            | Seen::TransferFailed { job, .. } => *job,
            Seen::CalledBack { job } | Seen::FailureCalled { job, .. } => Some(*job),
            Seen::DhcpOffered { .. }
            | Seen::DhcpIgnored { .. }
            | Seen::LoaderFetched { .. }
            | Seen::LocalBack { .. }
            | Seen::AnswerGiven { .. }
            | Seen::AnswerWithheld { .. }
            | Seen::BootServerAnswered { .. }
            | Seen::AddressGiven { .. }
            | Seen::OtherOffered { .. }
            | Seen::OtherAcked { .. }
            | Seen::ServerChosen { .. }
            | Seen::TftpAsked { .. }
            | Seen::TftpRefused { .. }
            | Seen::HttpRefused { .. }
            | Seen::IdentityAsked => None,
        }
    }
}

impl Seen {
    /// The stage as one word, for logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::DhcpOffered { .. } | Self::AddressGiven { .. } | Self::BootServerAnswered { .. } => "dhcp",
            Self::OtherOffered { .. } | Self::OtherAcked { .. } | Self::ServerChosen { .. } => "overheard",
            Self::TftpAsked { .. } => "tftp",
            Self::TftpRefused { .. } | Self::HttpRefused { .. } => "refused",
            Self::DhcpIgnored { .. } => "ignored",
            Self::LoaderFetched { .. } => "loader",
            Self::IdentityAsked => "identity",
            Self::LocalBack { .. } => "local",
            Self::AnswerGiven { .. } | Self::AnswerWithheld { .. } => "answer",
            Self::ScriptAsked { .. } => "script",
            Self::FileStarted { .. }
            | Self::FileProgress { .. }
            | Self::LastPieceSent { .. }
            | Self::FileDone { .. } => "image",
            Self::TransferFailed { .. } => "failed",
            Self::CalledBack { .. } | Self::FailureCalled { .. } => "callback",
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DhcpOffered { file, .. } => write!(f, "offered {file}"),
            Self::DhcpIgnored { reason, .. } => write!(f, "left without an answer: {reason}"),
            Self::BootServerAnswered { file, .. } => write!(f, "told {file} on port 4011"),
            Self::AddressGiven { .. } => f.write_str("address given"),
            Self::OtherOffered { server, .. } => write!(f, "offered something by {server}"),
            Self::OtherAcked { server } => write!(f, "address given by {server}"),
            Self::ServerChosen { server: Some(server) } => write!(f, "asked {server} for its address"),
            Self::ServerChosen { server: None } => f.write_str("asked for its address"),
            Self::TftpAsked { file } => write!(f, "asked for {file} by TFTP"),
            Self::TftpRefused { file, reason } => write!(f, "{file} refused by TFTP: {reason}"),
            Self::HttpRefused { path, status, reason } => {
                write!(f, "{path} refused by HTTP with {status}: {reason}")
            }
            Self::LoaderFetched { name, bytes, .. } => write!(f, "loader {name} fetched, {bytes} bytes"),
            Self::IdentityAsked => f.write_str("asked who it is"),
            Self::ScriptAsked { offer, image: Some(image), .. } => write!(f, "script: {offer} {image}"),
            Self::ScriptAsked { offer, image: None, .. } => write!(f, "script: {offer}"),
            Self::FileStarted { image, file, .. } => write!(f, "{image}/{file} asked for"),
            Self::FileProgress { .. } => f.write_str("delivery goes on"),
            Self::LastPieceSent { image, file, .. } => write!(f, "the last of {image}/{file} has left"),
            Self::FileDone { image, file, bytes, .. } => write!(f, "{image}/{file} delivered, {bytes} bytes"),
            Self::LocalBack { strategy } => write!(f, "the local boot {strategy} came back"),
            Self::AnswerGiven { name } => write!(f, "answer file {name} given"),
            Self::AnswerWithheld { name, reason } => write!(f, "answer file {name} withheld: {reason}"),
            Self::TransferFailed { file, bytes, reason, .. } => {
                write!(f, "{file} broke off after {bytes} bytes: {reason}")
            }
            Self::CalledBack { .. } => f.write_str("the booted system called back"),
            Self::FailureCalled { reason, .. } => write!(f, "the boot called back that it failed: {reason}"),
        }
    }
}

/// Who sent a DHCP request, as far as it matters to a boot's story.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asker {
    /// PXE firmware: a boot starts here.
    Firmware,
    /// UEFI HTTP Boot firmware: a boot starts here.
    Http,
    /// iPXE: a ROM starts a boot here, a loader goes on with one.
    Ipxe,
}

/// How bytes travelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// TFTP.
    Tftp,
    /// HTTP.
    Http,
}

/// What was seen. Names are names of the library or of the loader table, never local paths.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Seen {
    /// A DHCP answer that offers a boot left.
    DhcpOffered {
        /// Who asked.
        asker: Asker,
        /// Option 93.
        arch: Option<Arch>,
        /// The relay it came through (giaddr).
        relay: Option<Ipv4Addr>,
        /// The boot file or URL offered.
        file: String,
    },
    /// A boot request was left without an answer.
    DhcpIgnored {
        /// Why: the word of the drop counter.
        reason: String,
        /// Who asked; not in what earlier versions stored.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asker: Option<Asker>,
        /// Option 93.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arch: Option<Arch>,
        /// The relay it came through (giaddr).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        relay: Option<Ipv4Addr>,
        /// It came to port 4011.
        #[serde(default)]
        boot_server: bool,
    },
    /// An answer that names a boot file left from port 4011.
    BootServerAnswered {
        /// Option 93.
        arch: Option<Arch>,
        /// The boot file or URL.
        file: String,
    },
    /// Our DHCP acknowledged the machine's address.
    AddressGiven {
        /// The relay it came through (giaddr).
        relay: Option<Ipv4Addr>,
    },
    /// Another server's OFFER was heard.
    OtherOffered {
        /// Its option 54.
        server: Ipv4Addr,
        /// The boot file it names, cut to what is printable.
        file: Option<String>,
        /// The server it says that file is on (siaddr).
        next_server: Option<Ipv4Addr>,
        /// It offers an address.
        leases: bool,
        /// It calls itself a PXE or HTTP Boot server (option 60).
        pxe: bool,
        /// It says so without saying how to go on (no usable option 43): firmware goes to its port 4011.
        sends_to_4011: bool,
    },
    /// Another server's ACK was heard.
    OtherAcked {
        /// Its option 54.
        server: Ipv4Addr,
    },
    /// The machine's REQUEST for an address of another server was heard.
    ServerChosen {
        /// The server it names, when it names one.
        server: Option<Ipv4Addr>,
    },
    /// A file was asked for by TFTP and is there.
    TftpAsked {
        /// The name as it was served.
        file: String,
    },
    /// A file was asked for by TFTP and is not given.
    TftpRefused {
        /// The name as it was asked for.
        file: String,
        /// Why, in plain words.
        reason: String,
    },
    /// Something was asked for by HTTP and is not given.
    HttpRefused {
        /// The path, without its token.
        path: String,
        /// The status.
        status: u16,
        /// Why, in plain words.
        reason: String,
    },
    /// A loader was wholly acknowledged.
    LoaderFetched {
        /// Its name in the loader table.
        name: String,
        /// Bytes delivered.
        bytes: u64,
        /// How.
        over: Over,
    },
    /// The constant script that asks for an identity was given.
    IdentityAsked,
    /// A machine's script was given.
    ScriptAsked {
        /// The job it carries.
        job: Option<JobId>,
        /// What it makes the machine do ([`Offer::word`](super::script::Offer::word)).
        offer: String,
        /// The image it names.
        image: Option<String>,
    },
    /// The first byte of an image's file was asked for. Under a token if `boot` is filled.
    FileStarted {
        /// The token's job.
        job: Option<JobId>,
        /// Image.
        image: String,
        /// File below the image's folder.
        file: String,
        /// How.
        over: Over,
    },
    /// A long transfer goes on; to be sent every half minute or so, for silence counts against a boot.
    FileProgress {
        /// The token's job.
        job: Option<JobId>,
        /// Image.
        image: String,
        /// File below the image's folder.
        file: String,
        /// Bytes acknowledged so far by this transfer.
        bytes: u64,
        /// How.
        over: Over,
    },
    /// The last piece of the image's last boot file left. From here on the machine may have started what it booted,
    /// whether it acknowledges the piece or not: a UEFI machine that starts a kernel often does not.
    LastPieceSent {
        /// The token's job.
        job: Option<JobId>,
        /// Image.
        image: String,
        /// File below the image's folder.
        file: String,
        /// How.
        over: Over,
    },
    /// A file, or the piece of it that was asked for, was wholly acknowledged.
    FileDone {
        /// The token's job.
        job: Option<JobId>,
        /// Image.
        image: String,
        /// File below the image's folder.
        file: String,
        /// Bytes acknowledged by this transfer.
        bytes: u64,
        /// True when it was not all of the file: ranges by HTTP.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        part: bool,
        /// True when this completes the image's last boot file
        /// ([`LastFile::is_done_by`](super::script::LastFile::is_done_by)).
        last: bool,
        /// How.
        over: Over,
    },
    /// A way of leaving for the local disk came back, as the script reports
    /// ([`LocalStrategy`](super::script::LocalStrategy)).
    LocalBack {
        /// Its word.
        strategy: String,
    },
    /// An answer file was given.
    AnswerGiven {
        /// Its name.
        name: String,
    },
    /// An answer file was asked for and not given.
    AnswerWithheld {
        /// Its name.
        name: String,
        /// Why, in plain words.
        reason: String,
    },
    /// A transfer broke off.
    TransferFailed {
        /// The token's job.
        job: Option<JobId>,
        /// Name of the file or loader.
        file: String,
        /// Bytes acknowledged until then.
        bytes: u64,
        /// Why, in plain words.
        reason: String,
        /// How.
        over: Over,
    },
    /// The booted system called back.
    CalledBack {
        /// The token's job.
        job: JobId,
    },
    /// The boot, or the booted system, called back that it failed.
    FailureCalled {
        /// The token's job.
        job: JobId,
        /// What it says, cut to a line.
        reason: String,
    },
}
