//! Image folders laid out as Ghost Solution Suite and Deployment Solution lay them out: who boots them by iPXE, and
//! who by the program that the folder brings.
//!
//! In such a folder the presence of three files is a switch: `zipxe.0` for BIOS machines, `ipxe64.efi` and
//! `ipxe32.efi` for UEFI ones. Where a machine's file is there it boots by iPXE over HTTP; where it is not, by the
//! folder's own boot program over TFTP, if there is one for it. Found out by `files`, decided on here.

use serde::{Deserialize, Serialize};

use super::image::{Access, BootFiles, Image, Images};
use super::job::Job;
use crate::wire::arch::{Cpu, Family};

/// The loader files that switch iPXE on, by the machines they are for.
pub const SWITCHES: [(Family, &str); 3] =
    [(Family::Bios, "zipxe.0"), (Family::UefiX64, "ipxe64.efi"), (Family::UefiIa32, "ipxe32.efi")];

/// What is known of such a folder.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GssForm {
    /// The iPXE loaders in the folder: machines of these families boot by iPXE.
    pub ipxe: Vec<Program>,
    /// Boot programs for machines whose iPXE is off.
    pub native: Vec<Native>,
}

/// A program of the folder and the machines it is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Program {
    /// The machines.
    pub family: Family,
    /// Name below the image's folder.
    pub file: String,
}

/// What machines of one family boot while their iPXE is off.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Native {
    /// The machines.
    pub family: Family,
    /// The program their firmware loads, below the image's folder.
    pub program: String,
    /// The last file of that boot: the WIM, or the program itself where there is none. With its last block delivered
    /// the machine may run what it has loaded.
    pub last: String,
}

/// How machines of one family boot an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// By iPXE, over HTTP.
    Ipxe,
    /// By the folder's own program, over TFTP.
    Native,
    /// Not at all.
    None,
}

impl Way {
    /// The lower-case word of lists and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ipxe => "ipxe",
            Self::Native => "native",
            Self::None => "none",
        }
    }
}

impl GssForm {
    /// Whether any machine's iPXE is on.
    pub fn is_on(&self) -> bool {
        !self.ipxe.is_empty()
    }

    /// The iPXE loader the folder holds for a family.
    pub fn loader(&self, family: Family) -> Option<&str> {
        self.ipxe.iter().find(|program| program.family == family).map(|program| program.file.as_str())
    }
}

impl Image {
    /// What machines of this family boot because their iPXE is off for this image.
    pub fn native_for(&self, family: Family) -> Option<&Native> {
        self.gss.as_ref()?.native.iter().find(|native| native.family == family)
    }

    /// How machines of a family boot it.
    pub fn way(&self, family: Family) -> Way {
        match &self.boot {
            _ if self.unbootable.is_some() => Way::None,
            _ if self.native_for(family).is_some() => Way::Native,
            Some(BootFiles::Native) | None => Way::None,
            Some(_) if self.is_built_for(family) => Way::Ipxe,
            Some(_) => Way::None,
        }
    }

    fn is_built_for(&self, family: Family) -> bool {
        let platform = self.platform.is_none_or(|needs| needs == family.platform());
        let cpu = self.cpu.is_none_or(|needs| match family.cpu() {
            Some(has) => has == needs,
            // Whether a BIOS machine's processor has 64 bits, its iPXE finds out.
            None => matches!(needs, Cpu::X86 | Cpu::X64),
        });
        platform && cpu
    }

    /// True when no machine boots it by iPXE.
    pub fn is_native_only(&self) -> bool {
        matches!(self.boot, Some(BootFiles::Native))
    }
}

/// The boot program that a job gives to machines of a family without iPXE. What holds for the job's script holds here:
/// an image that may not be had is not given by another door.
pub fn program_of<'i>(job: &Job, images: &'i dyn Images, family: Family) -> Option<(&'i Image, &'i Native)> {
    let image = images.image(job.action.image()?)?;
    let refused = image.destructive && !job.may_wipe();
    // By TFTP nobody can show a token.
    if image.unbootable.is_some() || refused || image.access == Access::Boot {
        return None;
    }
    Some((image, image.native_for(family)?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::jobs::job::{Action, JobId, JobSpec, Selector};

    struct One(Vec<Arc<Image>>);

    impl Images for One {
        fn image(&self, name: &str) -> Option<&Image> {
            self.0.iter().find(|image| image.name == name).map(Arc::as_ref)
        }

        fn list(&self) -> &[Arc<Image>] {
            &self.0
        }
    }

    fn image() -> Image {
        let json = serde_json::json!({
            "name": "MenuOption128", "title": "x", "kind": "winpe", "cpu": null, "platform": null, "args": "",
            "index": null, "destructive": false, "access": "open",
            "boot": { "kind": "winpe", "wimboot": { "loader": "wimboot" }, "wim": "boot.wim", "extra": [] },
            "unbootable": null, "warnings": [], "files": [],
            "gss": {
                "ipxe": [{ "family": "uefi-x64", "file": "X64/ipxe64.efi" }],
                "native": [{ "family": "bios", "program": "X64/pxeboot.n12", "last": "boot.wim" }],
            },
        });
        serde_json::from_value(json).unwrap()
    }

    fn job(selector: Selector) -> Job {
        let spec = JobSpec::new(Action::Image("MenuOption128".into()), selector);
        Job::new(JobId(1), &spec, false, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn each_family_boots_as_its_own_loader_file_says() {
        let image = image();
        assert_eq!(image.way(Family::UefiX64), Way::Ipxe);
        assert_eq!(image.way(Family::Bios), Way::Native);
        assert_eq!(image.way(Family::UefiIa32), Way::Ipxe, "nothing else there could start it");
        let off = Image { boot: Some(BootFiles::Native), ..image.clone() };
        assert_eq!((off.way(Family::Bios), off.way(Family::UefiX64)), (Way::Native, Way::None));
        let broken = Image { unbootable: Some("why".into()), ..image };
        assert_eq!(broken.way(Family::Bios), Way::None);
    }

    #[test]
    fn a_program_is_given_only_where_the_jobs_script_would_be() {
        let exact = Selector::Mac("52:54:00:00:00:01".parse().unwrap());
        let found = |image: Image, job: &Job, family| {
            let images = One(vec![Arc::new(image)]);
            program_of(job, &images, family).map(|(_, native)| native.program.clone())
        };
        assert_eq!(found(image(), &job(exact.clone()), Family::Bios).as_deref(), Some("X64/pxeboot.n12"));
        assert_eq!(found(image(), &job(exact.clone()), Family::UefiX64), None, "its iPXE is on");
        let wiping = Image { destructive: true, ..image() };
        assert!(found(wiping.clone(), &job(exact.clone()), Family::Bios).is_some());
        assert_eq!(found(wiping.clone(), &job(Selector::Any), Family::Bios), None);
        let allowed = Job { allow_rule: true, destructive: true, ..job(Selector::Any) };
        assert!(found(wiping.clone(), &allowed, Family::Bios).is_some());
        // It was none that wipes when the rule was added: nobody who meets it must show who it is.
        let unaware = Job { destructive: false, ..allowed };
        assert_eq!(found(wiping.clone(), &unaware, Family::Bios), None);
        let always = Job { always: true, ..job(exact.clone()) };
        assert_eq!(found(wiping, &always, Family::Bios), None);
        let closed = Image { access: Access::Boot, ..image() };
        assert_eq!(found(closed, &job(exact.clone()), Family::Bios), None);
        let broken = Image { unbootable: Some("why".into()), ..image() };
        assert_eq!(found(broken, &job(exact), Family::Bios), None);
    }
}
