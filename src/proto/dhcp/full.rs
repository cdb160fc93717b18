//! The half that gives addresses: OFFER, ACK and NAK inside the listed subnets, boot data in the same reply.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::Server;
use super::asker::{Asker, specified};
use super::leases::{Claim, Refusal, Shown, Tenant};
use super::policy::{BootFile, BootPolicy};
use super::probe::{Probe, Standing};
use super::proxy::send;
use super::reply::{Boot, Reply};
use super::verdict::{DhcpStep, DropReason, Verdict};
use crate::wire::dhcp::{FLAG_BROADCAST, MessageType, code};

/// The shortest lease given, whatever the settings say: a shorter one would only make renewals.
const LEASE_MIN: Duration = Duration::from_secs(60);

/// What a REQUEST means (RFC 2131 §4.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Intent {
    /// Takes up our offer.
    Selecting,
    /// Started again and wants the address it had.
    InitReboot,
    /// Renews or rebinds.
    Renewing,
}

impl Server {
    /// Full mode, port 67.
    pub(super) fn handle_full(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        let subnet = asker.subnet.ok_or(DropReason::UnknownSubnet)?;
        self.leases.block([asker.local, asker.input.interface.addr]);
        let relay = asker.relay();
        let shown = Shown {
            mac: asker.mac,
            uuid: asker.uuid,
            client_id: asker.message.option(code::CLIENT_ID),
            circuit: asker.circuit.filter(|_| relay.is_some()),
        };
        let tenant = Tenant {
            hardware: asker.hardware,
            reserved: self.leases.reserved_for(&shown, subnet),
            registered: false,
            subnet,
            circuit: self.leases.circuit(relay, asker.circuit),
        };
        match asker.kind {
            MessageType::Discover => self.offer(now, asker, tenant, policy, out),
            MessageType::Request => self.request(now, asker, tenant, policy, out),
            MessageType::Inform => self.inform(now, asker, tenant, policy, out),
            MessageType::Release => {
                let ip = asker.ciaddr().ok_or(DropReason::NoRequestedAddress)?;
                self.give_up(now, asker, &tenant, ip, DhcpStep::Released)
            }
            MessageType::Decline => {
                let ip = requested(asker).ok_or(DropReason::NoRequestedAddress)?;
                self.give_up(now, asker, &tenant, ip, DhcpStep::Declined)
            }
            _ => Err(DropReason::OddMessageType),
        }
    }

    fn offer(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        mut tenant: Tenant,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        let file = self.boot_file(now, asker, policy)?;
        tenant.registered = self.is_registered(&tenant, policy);
        let hold_until = now + self.settings.offer_hold;
        let mut offer = self.leases.offer(&tenant, requested(asker), asker.message.xid(), hold_until)?;
        match self.probes.standing(now, offer.ip, offer.fresh) {
            Standing::Ask(until) => {
                return Ok(Verdict::Probe(Probe { ip: offer.ip, relay: asker.relay(), until }));
            }
            Standing::Asked => return Err(DropReason::Probing),
            // It was handed in before, but not answered.
            Standing::Silent => offer.retried = false,
            Standing::Known => {}
        }
        let reply = self.lease_reply(asker, &tenant, MessageType::Offer, offer.ip, file.as_ref());
        let output = send(asker, &reply, offer.retried, 0, out)?;
        Ok(Verdict::Reply(output, asker.event(DhcpStep::Offered, Some(offer.ip), file.unwrap_or_default())))
    }

    fn request(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        mut tenant: Tenant,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        let server_id = asker.message.server_id();
        if let Some(server) = server_id.filter(|server_id| !asker.is_us(*server_id)) {
            self.leases.withdraw(&tenant);
            let what = DhcpStep::OverheardRequest { server: Some(server) };
            let ip = requested(asker).or(asker.ciaddr());
            return Ok(Verdict::Heard(asker.event(what, ip, BootFile::new())));
        }
        let (intent, ip) = match (server_id, requested(asker), asker.ciaddr()) {
            (Some(_), Some(ip), _) | (Some(_), None, Some(ip)) => (Intent::Selecting, ip),
            (None, _, Some(ip)) => (Intent::Renewing, ip),
            (None, Some(ip), None) => (Intent::InitReboot, ip),
            (_, None, None) => return Err(DropReason::NoRequestedAddress),
        };
        let file = self.boot_file(now, asker, policy)?;
        tenant.registered = self.is_registered(&tenant, policy);

        let authoritative = self.settings.authoritative;
        let subnet = &self.settings.subnets[tenant.subnet];
        let lease = subnet.lease.max(LEASE_MIN);
        let moved = tenant.reserved.is_some_and(|reserved| reserved != ip);
        let claimed = if !subnet.network.contains_host(ip) || moved && intent == Intent::InitReboot {
            Err(Refusal::Wrong)
        } else {
            // After a restart nothing is remembered: what the client remembers counts, where that is ours to say.
            let create = intent == Intent::Selecting || authoritative;
            self.leases.claim(&tenant, ip, create, asker.message.xid(), now + lease, lease)
        };
        match claimed {
            Ok(Claim { retried, stored }) => {
                let reply = self.lease_reply(asker, &tenant, MessageType::Ack, ip, file.as_ref());
                let output = send(asker, &reply, retried, stored, out)?;
                Ok(Verdict::Reply(output, asker.event(DhcpStep::Acked, Some(ip), file.unwrap_or_default())))
            }
            // A client that renews is left to its lease's end: it has the address, whatever we think of it.
            Err(_) if intent == Intent::Renewing || !authoritative => Err(DropReason::UnknownLease),
            Err(Refusal::Unknown) if intent == Intent::InitReboot => Err(DropReason::UnknownLease),
            Err(Refusal::Wrong | Refusal::Unknown | Refusal::Kept) => self.nak(asker, ip, out),
        }
    }

    fn nak(&self, asker: &Asker<'_>, ip: Ipv4Addr, out: &mut [u8]) -> Result<Verdict, DropReason> {
        // RFC 2131 §4.3.2: through a relay the bit makes the relay broadcast it, since the client's address is wrong.
        let broadcast = if asker.relay().is_some() { FLAG_BROADCAST } else { 0 };
        let reply = Reply {
            kind: MessageType::Nak,
            server_id: asker.server_id,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            flags: asker.message.flags() | broadcast,
            subnet: None,
            lease: None,
            boot: None,
            message: Some("address not available"),
        };
        let output = send(asker, &reply, false, 0, out)?;
        Ok(Verdict::Reply(output, asker.event(DhcpStep::Naked, Some(ip), BootFile::new())))
    }

    fn inform(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        tenant: Tenant,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        // RFC 2131 §4.4.3: the client has an address, and the answer goes there.
        let ip = asker.ciaddr().ok_or(DropReason::BadAddress)?;
        let file = self.boot_file(now, asker, policy)?;
        let reply = Reply {
            ciaddr: ip,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            lease: None,
            ..self.lease_reply(asker, &tenant, MessageType::Ack, ip, file.as_ref())
        };
        let output = send(asker, &reply, false, 0, out)?;
        Ok(Verdict::Reply(output, asker.event(DhcpStep::Informed, Some(ip), file.unwrap_or_default())))
    }

    fn give_up(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        tenant: &Tenant,
        ip: Ipv4Addr,
        what: DhcpStep,
    ) -> Result<Verdict, DropReason> {
        if asker.message.server_id().is_some_and(|server_id| !asker.is_us(server_id)) {
            return Err(DropReason::OtherServer);
        }
        let had_it = match what {
            DhcpStep::Declined if self.leases.has(tenant, ip) && self.is_believed(now, ip, asker.mac) => {
                self.claims.note(now, ip, asker.mac);
                self.leases.decline(tenant, ip, now)
            }
            // A DECLINE that is not believed gives the address back: it is one of very many.
            _ => self.leases.release(tenant, ip, now),
        };
        if !had_it {
            return Err(DropReason::UnknownLease);
        }
        Ok(Verdict::Heard(asker.event(what, Some(ip), BootFile::new())))
    }

    /// What the machine is to boot, if it is booting and there is something.
    fn boot_file(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        policy: &mut dyn BootPolicy,
    ) -> Result<Option<BootFile>, DropReason> {
        match &asker.firmware {
            Some(firmware) => self.resolve(now, asker, firmware, policy).map(|(_, file)| file),
            None => {
                self.identify(asker);
                if policy.is_silent(&self.who) { Err(DropReason::Silent) } else { Ok(None) }
            }
        }
    }

    fn is_registered(&mut self, tenant: &Tenant, policy: &mut dyn BootPolicy) -> bool {
        tenant.reserved.is_some() || policy.is_registered(&self.who)
    }

    fn lease_reply<'r>(
        &'r self,
        asker: &'r Asker<'_>,
        tenant: &Tenant,
        kind: MessageType,
        ip: Ipv4Addr,
        file: Option<&'r BootFile>,
    ) -> Reply<'r> {
        let subnet = &self.settings.subnets[tenant.subnet];
        let boot = asker.firmware.as_ref().zip(file).map(|(firmware, file)| Boot {
            firmware,
            file,
            server: asker.server,
            no_proxy: true,
            boot_item: false,
        });
        Reply {
            kind,
            server_id: asker.server_id,
            ciaddr: if kind == MessageType::Ack { asker.message.ciaddr() } else { Ipv4Addr::UNSPECIFIED },
            yiaddr: ip,
            flags: asker.message.flags(),
            subnet: Some(subnet),
            lease: Some(subnet.lease.max(LEASE_MIN)),
            boot,
            message: None,
        }
    }
}

/// Option 50.
fn requested(asker: &Asker<'_>) -> Option<Ipv4Addr> {
    asker.message.option_ipv4(code::REQUESTED_ADDRESS).and_then(specified)
}
