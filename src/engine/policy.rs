//! What DHCP tells a machine to boot: the job table's decision, the loader its firmware can run, or the script's
//! address for those that are iPXE already.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::Guard;

use super::shared::Shared;
use crate::files::Catalog;
use crate::jobs::Identity;
use crate::jobs::gss;
use crate::jobs::image::{Access, Images};
use crate::jobs::script::{Policy, Unknown};
use crate::jobs::table::{Decision, View};
use crate::proto::dhcp::{Answer, BootFile, BootPolicy, Wish};
use crate::proto::firmware::{Firmware, FirmwareKind};
use crate::wire::arch::Family;
use crate::wire::{Arch, MacAddr};

/// One look at the snapshots, for the messages of one turn.
pub(super) struct Decider<'a> {
    shared: &'a Shared,
    policy: Guard<Arc<Policy>>,
    catalog: Guard<Arc<Catalog>>,
    view: View<'a>,
    /// HTTP's port at the address of ours that was asked for last.
    port: Option<(Ipv4Addr, Option<u16>)>,
    /// A job or an operator's word is there for the message's machine, once that was looked up.
    claimed: Option<bool>,
}

impl<'a> Decider<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            policy: shared.policy.load(),
            catalog: shared.library.load(),
            view: shared.keeper.table().view(),
            port: None,
            claimed: None,
        }
    }

    /// Forgets the machine of the last message.
    pub(super) fn next_message(&mut self) {
        self.claimed = None;
    }

    fn http_port(&mut self, server: Ipv4Addr) -> Option<u16> {
        match self.port {
            Some((at, port)) if at == server => port,
            _ => {
                let port = self.shared.http_port(server);
                self.port = Some((server, port));
                port
            }
        }
    }
}

impl BootPolicy for Decider<'_> {
    fn resolve(
        &mut self,
        who: &Identity,
        firmware: &Firmware,
        server: Ipv4Addr,
        wish: &Wish<'_>,
        file: &mut BootFile,
    ) -> Answer {
        let port = self.http_port(server);
        let decision = self.view.decide(who);
        let claimed = !matches!(decision, Decision::NoJob);
        self.claimed = Some(claimed);
        if matches!(decision, Decision::Rejected) {
            // No loader, no address of a script: denied at every hop.
            return Answer::NoBoot;
        }
        if !claimed && self.policy.unknown == Unknown::Silent {
            return Answer::Silent;
        }
        let catalog = &self.catalog;
        file.clear();
        let family = Family::of(firmware.arch);
        let job = decision.job();
        // The machine's own, its image's, its subnet's: the narrowest counts.
        let loader = || {
            let own = self.view.standing(who).and_then(|standing| standing.loader.as_deref());
            let image = job.and_then(|job| catalog.image(job.action.image()?)?.loader.as_deref());
            let named = [own, image, wish.loader].into_iter().flatten();
            catalog.loader_wished(firmware.arch, named, wish.pass_over)
        };
        let native = job.zip(family).and_then(|(job, family)| gss::program_of(job, &***catalog, family));
        let written = match (firmware.kind, port) {
            (FirmwareKind::Ipxe(features), Some(port)) if features.http => match who.mac {
                Some(mac) => write!(file, "http://{server}:{port}/ipxe?mac={mac}"),
                None => write!(file, "http://{server}:{port}/ipxe"),
            },
            // Another iPXE would come back with the same question, and again without end.
            (FirmwareKind::Ipxe(features), None) if features.http => return Answer::NoBoot,
            // The job's image boots without iPXE: straight to its own program, without a hop in between.
            (FirmwareKind::Pxe | FirmwareKind::Ipxe(_), _) if let Some((image, native)) = native => {
                write!(file, "{}/{}", image.name, native.program)
            }
            // Windows' and GSS's programs go on by TFTP, which HTTP Boot firmware cannot give them.
            (FirmwareKind::HttpBoot, _) if native.is_some() => return Answer::NoBoot,
            // This iPXE cannot fetch a script by HTTP: it gets one that can, once, by TFTP.
            (FirmwareKind::Ipxe(_), _) => match catalog.full_loader_for(firmware.arch) {
                Some((name, _)) => file.write_str(name),
                None => return Answer::NoBoot,
            },
            (FirmwareKind::HttpBoot, Some(port)) => match loader() {
                Some(name) => write!(file, "http://{server}:{port}/loaders/{name}"),
                None => match own_loader(catalog, decision, firmware.arch) {
                    Some(name) => write!(file, "http://{server}:{port}/images/{name}"),
                    None => return Answer::NoBoot,
                },
            },
            (FirmwareKind::HttpBoot, None) => return Answer::NoBoot,
            (FirmwareKind::Pxe, _) => match loader() {
                Some(name) => file.write_str(name),
                None => match own_loader(catalog, decision, firmware.arch) {
                    Some(name) => file.write_str(&name),
                    None => return Answer::NoBoot,
                },
            },
        };
        // A name too long for the `file` field cannot be offered.
        match written {
            Ok(()) if claimed => Answer::Boot,
            Ok(()) => Answer::BootUnclaimed,
            Err(_) => Answer::NoBoot,
        }
    }

    fn is_excluded(&mut self, mac: MacAddr) -> bool {
        self.policy.excludes(mac)
    }

    fn is_silent(&mut self, who: &Identity) -> bool {
        self.policy.unknown == Unknown::Silent && !self.is_registered(who)
    }

    fn is_registered(&mut self, who: &Identity) -> bool {
        let looked = || !matches!(self.view.decide(who), Decision::NoJob);
        *self.claimed.get_or_insert_with(looked)
    }
}

/// The iPXE that the job's image brings in its folder, for machines the loader folders have none for.
fn own_loader(catalog: &Catalog, decision: Decision<'_>, arch: Arch) -> Option<String> {
    let image = catalog.image(decision.job()?.action.image()?)?;
    let file = image.gss.as_ref()?.loader(Family::of(arch)?)?;
    (image.access == Access::Open).then(|| format!("{}/{file}", image.name))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::files::library::test_site::Site;
    use crate::jobs::script::Policy;
    use crate::keeper::{Keeper, Running};
    use crate::proto::firmware::IpxeFeatures;
    use crate::store::MemoryStore;
    use crate::wire::Arch;

    const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// What decides over a site's files where HTTP listens on `http`, and the keeper behind it.
    fn shared(site: &Site, policy: Policy, http: &[&str]) -> (Shared, Running) {
        let library = Arc::new(site.library());
        let images = Arc::clone(&library);
        let keeper = Keeper::start(
            Box::new(MemoryStore::new()),
            Box::new(move || images.snapshot()),
            [1; 32],
            Box::new(|_| {}),
        )
        .unwrap();
        let (evidence, _) = crossbeam_channel::bounded(1);
        let shared = Shared::new(library, keeper.keeper().clone(), policy, evidence, Duration::ZERO);
        shared.set_http(http.iter().map(|addr| addr.parse::<SocketAddrV4>().unwrap()).collect());
        (shared, keeper)
    }

    /// What a machine is told where HTTP listens on `http`.
    fn told(http: &[&str], kind: FirmwareKind, arch: Arch) -> (Answer, String) {
        let site = Site::new();
        site.write("loaders/undionly.kpxe", b"bios");
        site.write("loaders/snponly.efi", b"uefi");
        let (shared, _keeper) = shared(&site, Policy::default(), http);
        let who = Identity { mac: "52:54:00:00:00:01".parse().ok(), ..Identity::default() };
        let mut file = BootFile::new();
        let firmware = Firmware { kind, arch, arch_stated: true };
        let answer = Decider::new(&shared).resolve(&who, &firmware, US, &Wish::default(), &mut file);
        (answer, file.as_str().to_owned())
    }

    #[test]
    fn each_firmware_is_told_what_it_can_run() {
        let any: &[&str] = &["0.0.0.0:4433"];
        let http = FirmwareKind::Ipxe(IpxeFeatures { http: true, ..IpxeFeatures::default() });
        let no_http = FirmwareKind::Ipxe(IpxeFeatures::default());
        for (listeners, kind, arch, file) in [
            (any, FirmwareKind::Pxe, Arch::BIOS, "undionly.kpxe"),
            (any, FirmwareKind::Pxe, Arch::UEFI_EBC, "snponly.efi"),
            (any, FirmwareKind::HttpBoot, Arch::HTTP_X64, "http://10.77.0.1:4433/loaders/snponly.efi"),
            (any, http, Arch::UEFI_X64, "http://10.77.0.1:4433/ipxe?mac=52:54:00:00:00:01"),
            (any, http, Arch(0xffff), "http://10.77.0.1:4433/ipxe?mac=52:54:00:00:00:01"),
            (
                &["192.0.2.1:80", "10.77.0.1:8080"],
                http,
                Arch::BIOS,
                "http://10.77.0.1:8080/ipxe?mac=52:54:00:00:00:01",
            ),
            (any, no_http, Arch::BIOS, "undionly.kpxe"),
            (&[], FirmwareKind::Pxe, Arch::BIOS, "undionly.kpxe"),
        ] {
            assert_eq!(told(listeners, kind, arch), (Answer::BootUnclaimed, file.to_owned()));
        }
    }

    #[test]
    fn the_narrowest_word_on_loaders_counts_where_it_fits() {
        let site = Site::new();
        for name in ["undionly.kpxe", "ipxe.pxe", "snponly.efi", "ipxe.efi", "own.efi", "http.efi"] {
            site.write(&format!("loaders/{name}"), b"a loader");
        }
        site.write("images/plain/vmlinuz", b"a kernel");
        site.write("images/plain/image.toml", b"kind = \"linux\"\nfiles = [\"vmlinuz\"]");
        site.write("images/choosy/vmlinuz", b"a kernel");
        site.write(
            "images/choosy/image.toml",
            b"kind = \"linux\"\nfiles = [\"vmlinuz\"]\nloader = \"http.efi\"",
        );
        let (shared, keeper) = shared(&site, Policy::default(), &["0.0.0.0:4433"]);
        let mac = |last| MacAddr([0x52, 0x54, 0, 0, 0, last]);
        for (last, image, loader) in [
            (1, None, None),
            (2, Some("plain"), None),
            (3, Some("choosy"), None),
            (4, Some("choosy"), Some("own.efi")),
        ] {
            if let Some(loader) = loader {
                let spec = crate::jobs::book::MachineSpec {
                    idents: vec![crate::jobs::machine::Ident::Mac(mac(last))],
                    loader: Some(format!(" {loader} ")),
                    ..Default::default()
                };
                keeper.keeper().order_and_wait(crate::keeper::Order::Register(spec), "a test").unwrap();
            }
            let Some(image) = image else { continue };
            let spec = crate::jobs::job::JobSpec::new(
                crate::jobs::job::Action::Image(image.into()),
                crate::jobs::job::Selector::Mac(mac(last)),
            );
            keeper.keeper().order_and_wait(crate::keeper::Order::AddJobs(vec![spec]), "a test").unwrap();
        }
        let told = |last, kind, arch, wish: &Wish<'_>| {
            let who = Identity { mac: Some(mac(last)), ..Identity::default() };
            let firmware = Firmware { kind, arch, arch_stated: true };
            let mut file = BootFile::new();
            Decider::new(&shared).resolve(&who, &firmware, US, wish, &mut file);
            file.as_str().rsplit('/').next().unwrap().to_owned()
        };
        let subnet = Wish { loader: Some("ipxe.efi"), pass_over: 0 };
        for (last, wish, loader) in [
            (1, Wish::default(), "snponly.efi"),
            (1, subnet, "ipxe.efi"),
            (2, subnet, "ipxe.efi"),
            (3, subnet, "http.efi"),
            (4, subnet, "own.efi"),
            (4, Wish { pass_over: 1, ..Wish::default() }, "own.efi"),
        ] {
            for (kind, arch) in
                [(FirmwareKind::Pxe, Arch::UEFI_X64), (FirmwareKind::HttpBoot, Arch::HTTP_X64)]
            {
                assert_eq!(told(last, kind, arch, &wish), loader, "machine {last}");
            }
            // A loader for EFI is none for a BIOS.
            assert_eq!(
                told(last, FirmwareKind::Pxe, Arch::BIOS, &Wish { pass_over: 0, ..wish }),
                "undionly.kpxe"
            );
        }
    }

    #[test]
    fn an_ipxe_is_never_told_to_load_itself_where_http_does_not_answer() {
        let http = FirmwareKind::Ipxe(IpxeFeatures { http: true, ..IpxeFeatures::default() });
        for listeners in [&[] as &[&str], &["192.0.2.1:80"]] {
            assert_eq!(told(listeners, http, Arch::UEFI_X64).0, Answer::NoBoot);
            assert_eq!(told(listeners, FirmwareKind::HttpBoot, Arch::HTTP_X64).0, Answer::NoBoot);
        }
    }

    #[test]
    fn whom_the_policy_excludes_is_told_so_by_address_or_prefix() {
        let exclude = ["52:54:00:*", "02:00:00:00:00:07"].map(|text| text.parse().unwrap()).to_vec();
        let policy = Policy { exclude, ..Policy::default() };
        let (shared, _keeper) = shared(&Site::new(), policy, &[]);
        for (mac, excluded) in [
            ("52:54:00:12:34:56", true),
            ("52:54:01:12:34:56", false),
            ("02:00:00:00:00:07", true),
            ("02:00:00:00:00:08", false),
        ] {
            assert_eq!(Decider::new(&shared).is_excluded(mac.parse().unwrap()), excluded, "{mac}");
        }
    }

    #[test]
    fn a_machine_no_loader_is_for_is_told_nothing() {
        for arch in [Arch::UEFI_IA32, Arch::UEFI_ARM64, Arch(0x1b), Arch(2), Arch(0x0c)] {
            assert_eq!(told(&["0.0.0.0:80"], FirmwareKind::Pxe, arch).0, Answer::NoBoot, "{arch:?}");
        }
    }
}
