//! What DHCP tells a machine to boot: the job table's decision, the loader its firmware can run, or the script's
//! address for those that are iPXE already.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::shared::Shared;
use crate::jobs::Identity;
use crate::jobs::script::Unknown;
use crate::jobs::table::Decision;
use crate::proto::dhcp::{Answer, BootFile, BootPolicy};
use crate::proto::firmware::{Firmware, FirmwareKind};

/// One look at the snapshots, for one message.
pub(super) struct Decider<'a> {
    shared: &'a Shared,
}

impl<'a> Decider<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared }
    }
}

impl BootPolicy for Decider<'_> {
    fn resolve(
        &mut self,
        who: &Identity,
        firmware: &Firmware,
        server: Ipv4Addr,
        file: &mut BootFile,
    ) -> Answer {
        let view = self.shared.keeper.table().view();
        let claimed = match view.decide(who) {
            // No loader, no address of a script: denied at every hop.
            Decision::Rejected => return Answer::NoBoot,
            Decision::Job(_) | Decision::Done(_) => true,
            Decision::NoJob => false,
        };
        if !claimed && self.shared.policy.load().unknown == Unknown::Silent {
            return Answer::Silent;
        }
        let catalog = self.shared.library.load();
        let port = self.shared.http_port(server);
        file.clear();
        let written = match (firmware.kind, port) {
            (FirmwareKind::Ipxe(features), Some(port)) if features.http => match who.mac {
                Some(mac) => write!(file, "http://{server}:{port}/ipxe?mac={mac}"),
                None => write!(file, "http://{server}:{port}/ipxe"),
            },
            // This iPXE cannot fetch a script by HTTP: it gets one that can, once, by TFTP.
            (FirmwareKind::Ipxe(_), _) => match catalog.full_loader_for(firmware.arch) {
                Some((name, _)) => write!(file, "{name}"),
                None => return Answer::NoBoot,
            },
            (FirmwareKind::HttpBoot, Some(port)) => match catalog.loader_for(firmware.arch) {
                Some((name, _)) => write!(file, "http://{server}:{port}/loaders/{name}"),
                None => return Answer::NoBoot,
            },
            (FirmwareKind::HttpBoot, None) => return Answer::NoBoot,
            (FirmwareKind::Pxe, _) => match catalog.loader_for(firmware.arch) {
                Some((name, _)) => write!(file, "{name}"),
                None => return Answer::NoBoot,
            },
        };
        // A name too long for the `file` field cannot be offered.
        match written {
            Ok(()) if claimed => Answer::Boot,
            Ok(()) => Answer::BootUnclaimed,
            Err(_) => Answer::NoBoot,
        }
    }

    fn is_registered(&mut self, who: &Identity) -> bool {
        !matches!(self.shared.keeper.table().view().decide(who), Decision::NoJob)
    }
}
