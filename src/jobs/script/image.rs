//! The lines that boot one image, and whether a machine can boot it at all.

use super::Urls;
use super::builder::{Script, WIMBOOT_NAME_MAX};
use crate::jobs::Identity;
use crate::jobs::gss::Native;
use crate::jobs::image::{BootFiles, Image, UrlArg, WimbootAt};
use crate::jobs::job::JobId;
use crate::wire::arch::{Cpu, Family, Platform};

/// A 32-bit iPXE, which every BIOS one is, addresses 4 GiB, and the WIM must fit twice for a while.
const WIM_MAX_32_BIT: u64 = 2 << 30;
/// wimboot takes 63 files; the WIM and wimboot's own count.
const WIMBOOT_FILES_MAX: usize = 60;
const INITRDS_MAX: usize = 32;
const WARNINGS_MAX: usize = 8;
const URL_ARGS_MAX: usize = 8;
/// Progress-based in every build: a download that delivers nothing for two minutes has died.
const TIMEOUT: &str = " --timeout 120000 ";

/// What shows that a machine has everything its script names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastFile<'a> {
    /// The file, below the image's folder.
    pub name: &'a str,
    /// True when the whole file must have arrived; false for a SAN disk, which is read piece by piece for as long
    /// as the system runs, so that the first piece is all there is to wait for.
    pub whole: bool,
}

impl LastFile<'_> {
    /// Whether the acknowledged delivery of `file` is the end of it; `reached_end` says that the last byte of the
    /// file was among what was acknowledged.
    pub fn is_done_by(&self, file: &str, reached_end: bool) -> bool {
        self.name == file && (reached_end || !self.whole)
    }
}

/// The last file the script of `image` makes the machine fetch; `None` for what cannot boot, and for a custom script
/// with variables, of which nobody knows what it fetches: there the script itself is the last that is sure to be.
pub fn last_file(image: &Image) -> Option<LastFile<'_>> {
    if image.template.is_some() {
        return None;
    }
    Some(match image.boot.as_ref()? {
        BootFiles::Winpe { wim, .. } => LastFile { name: wim, whole: true },
        BootFiles::Linux { kernel, initrds } => {
            // Of an empty file nothing can be held back, and its delivery shows nothing.
            let is_empty =
                |name: &&String| image.files.iter().any(|file| file.name == **name && file.len == 0);
            let name = initrds.iter().take(INITRDS_MAX).rfind(|name| !is_empty(name)).unwrap_or(kernel);
            LastFile { name, whole: true }
        }
        BootFiles::Iso { iso } => LastFile { name: iso, whole: false },
        BootFiles::Efi { program } => LastFile { name: program, whole: true },
        BootFiles::Script { script } => LastFile { name: script, whole: true },
        // Which file is the last depends on the machine.
        BootFiles::Native => return None,
    })
}

/// What must not leave before it is on the disk that a boot has passed the point of no return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Barrier<'a> {
    /// The end of this file of the image.
    File(&'a str),
    /// The script itself: what it starts fetches the rest as it likes.
    Script,
}

impl<'a> Barrier<'a> {
    /// The file whose end it is.
    pub fn file(self) -> Option<&'a str> {
        match self {
            Self::File(name) => Some(name),
            Self::Script => None,
        }
    }
}

/// Where the point of no return of an image lies; `None` for what cannot boot.
pub fn barrier(image: &Image) -> Option<Barrier<'_>> {
    Some(match image.boot.as_ref()? {
        BootFiles::Winpe { .. } | BootFiles::Linux { .. } => Barrier::File(last_file(image)?.name),
        BootFiles::Iso { .. } | BootFiles::Efi { .. } | BootFiles::Script { .. } | BootFiles::Native => {
            Barrier::Script
        }
    })
}

/// Where it lies for a machine that boots by its script. A program of the folder that iPXE chains to fetches the rest as
/// it likes.
pub fn barrier_of_script<'i>(image: &'i Image, who: &Identity) -> Option<Barrier<'i>> {
    match who.family() {
        Some(family) if image.native_for(family).is_some() => Some(Barrier::Script),
        _ => barrier(image),
    }
}

/// Whether an image can boot on a machine.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Fit {
    /// As far as anyone knows.
    Fits,
    /// Only if the BIOS machine has a 64-bit processor, which its iPXE must find out.
    AskCpu,
    /// No, and why, in words for the screen.
    Misfit(Box<str>),
}

pub(super) fn fit(image: &Image, who: &Identity) -> Fit {
    let firmware = who.firmware();
    match who.family() {
        Some(family) if image.native_for(family).is_some() => return Fit::Fits,
        Some(family) if image.is_native_only() => {
            let all = image.gss.iter().flat_map(|form| &form.native).map(|native| native.family.word());
            let held: Vec<&str> = all.collect();
            let (held, has) = (held.join(", "), family.word());
            return Fit::Misfit(
                format!("its iPXE is off, and its folder holds boot programs for {held}, not for this machine's {has}")
                    .into(),
            );
        }
        _ => {}
    }
    if let (Some(needs), Some(has)) = (image.platform, firmware)
        && needs != has
    {
        return Fit::Misfit(
            format!("it needs {}, and this machine came by {}", platform_word(needs), platform_word(has))
                .into(),
        );
    }
    let Some(needs) = image.cpu else { return Fit::Fits };
    match (needs, who.cpu(), firmware) {
        // A 64-bit processor in a BIOS machine runs 32-bit systems; UEFI runs its own width only.
        (Cpu::X86, Some(Cpu::X64) | None, Some(Platform::Bios)) => Fit::Fits,
        (Cpu::X64, None, Some(Platform::Bios)) => Fit::AskCpu,
        (_, None, Some(Platform::Bios)) => {
            Fit::Misfit(format!("it is built for {}, and this machine is a PC", cpu_word(needs)).into())
        }
        (_, Some(has), _) if has != needs => {
            let which = if firmware == Some(Platform::Efi) { "firmware" } else { "processor" };
            let (needs, has) = (cpu_word(needs), cpu_word(has));
            Fit::Misfit(format!("it is built for {needs}, and this machine's {which} is {has}").into())
        }
        _ => Fit::Fits,
    }
}

/// Said at the label `misfit`.
pub(super) const MISFIT: &str =
    "echo bootstorm: not booting it, it is made for another firmware or processor than this machine's\n";

/// The lines from `imgfree` to the boot. What breaks goes to the label `failed`, what ends well to `local`, a
/// machine that turns out to be another than it was taken for to `misfit`; true when that label is needed.
pub(super) fn body(
    script: &mut Script<'_>,
    image: &Image,
    who: &Identity,
    job: Option<JobId>,
    urls: Urls<'_>,
) -> bool {
    let Some(boot) = &image.boot else { return false };
    let native = who.family().and_then(|family| image.native_for(family));
    if native.is_some() || *boot == BootFiles::Native {
        native_programs(script, image, who, native, urls);
        return false;
    }
    let guarded = guards(script, image, who);
    // Whatever an earlier try left registered would end up in the initrd, or in WinPE's System32.
    script.raw("imgfree ||\n");
    for warning in image.warnings.iter().take(WARNINGS_MAX) {
        script.raw("echo Warning: ").text(warning).end();
    }
    match boot {
        BootFiles::Winpe { wimboot, wim, extra } => winpe(script, image, who, wimboot, wim, extra, urls),
        BootFiles::Linux { kernel, initrds } => linux(script, image, who, job, kernel, initrds, urls),
        BootFiles::Iso { iso } => {
            // Without a description: what iPXE leaves in memory for an installed system's driver is of no use to
            // an installer, and describing fails on some firmware.
            script.raw("sanboot --no-describe ");
            url(script, urls, image, iso).raw(" || goto failed\ngoto local\n");
        }
        BootFiles::Efi { program } => {
            warn_lost_arguments(script, Script::args_are_changed(&image.args));
            script.raw("chain --autofree").raw(TIMEOUT);
            url(script, urls, image, program);
            url_args(script, urls, image);
            script.raw(" ").args(&image.args).raw(" || goto failed\ngoto local\n");
        }
        BootFiles::Script { script: name } => {
            script.raw("chain --autofree").raw(TIMEOUT);
            url(script, urls, image, name).raw(" || goto failed\ngoto local\n");
        }
        // Said above.
        BootFiles::Native => {}
    }
    guarded
}

/// Hands over to the folder's own boot program, by TFTP as it expects: what it goes on to load it asks of the server
/// and by the name that DHCP gave, which iPXE shows it in its own copies of the packets.
fn native_programs(
    script: &mut Script<'_>,
    image: &Image,
    who: &Identity,
    native: Option<&Native>,
    urls: Urls<'_>,
) {
    script.raw("imgfree ||\n");
    let all = image.gss.iter().flat_map(|gss| &gss.native);
    for program in all.filter(|program| native.is_none_or(|native| native == *program)) {
        let only = match program.family {
            _ if who.family().is_some() => "",
            Family::Bios => "iseq ${platform} pcbios && ",
            Family::UefiX64 => "iseq ${buildarch} x86_64 && iseq ${platform} efi && ",
            Family::UefiIa32 => "iseq ${buildarch} i386 && iseq ${platform} efi && ",
            Family::UefiArm64 => "iseq ${buildarch} arm64 && iseq ${platform} efi && ",
        };
        script.raw(only).raw("set netX/next-server ").host(urls.base).raw(" ||\n");
        script.raw(only).raw("set netX/filename ");
        script.segment(&image.name).raw("/").path(&program.program).raw(" ||\n");
        script.raw(only).raw("chain --autofree").raw(TIMEOUT).raw("tftp://").host(urls.base).raw("/");
        script.segment(&image.name).raw("/").path(&program.program).raw(" && goto local ||\n");
    }
    script.raw("goto failed\n");
}

/// Arguments that name the image's own files.
fn url_args(script: &mut Script<'_>, urls: Urls<'_>, image: &Image) {
    for UrlArg { word, file } in image.url_args.iter().take(URL_ARGS_MAX) {
        script.raw(" ").args(word);
        if word.ends_with(' ') {
            script.raw(" ");
        }
        url(script, urls, image, file);
    }
}

/// What iPXE has not said of itself yet, it is asked for where it runs: option 93 is the firmware's claim, and a
/// chain of loaders can end in another iPXE than it began with.
fn guards(script: &mut Script<'_>, image: &Image, who: &Identity) -> bool {
    let asks_cpu = fit(image, who) == Fit::AskCpu;
    if asks_cpu {
        script.raw("cpuid --ext 29 || goto misfit\n");
    }
    let platform = match image.platform.filter(|_| who.platform.is_none()) {
        Some(Platform::Bios) => Some("iseq ${platform} pcbios || goto misfit\n"),
        Some(Platform::Efi) => Some("iseq ${platform} efi || goto misfit\n"),
        Some(Platform::Other) | None => None,
    };
    // On a BIOS the build's width says nothing about the processor's.
    let build = match image.cpu.filter(|_| who.build_arch.is_none() && who.firmware() == Some(Platform::Efi))
    {
        Some(Cpu::X86) => Some("iseq ${buildarch} i386 || goto misfit\n"),
        Some(Cpu::X64) => Some("iseq ${buildarch} x86_64 || goto misfit\n"),
        Some(Cpu::Arm32) => Some("iseq ${buildarch} arm32 || goto misfit\n"),
        Some(Cpu::Arm64) => Some("iseq ${buildarch} arm64 || goto misfit\n"),
        Some(Cpu::Other) | None => None,
    };
    for line in platform.into_iter().chain(build) {
        script.raw(line);
    }
    asks_cpu || platform.is_some() || build.is_some()
}

/// At least as many bytes as [`body`] writes.
pub(super) fn body_len_max(image: &Image, urls: Urls<'_>) -> usize {
    let per_file = 160 + urls.base.len() + urls.token.as_str().len() + 3 * image.name.len();
    let files: usize = match &image.boot {
        None | Some(BootFiles::Native) => 0,
        Some(BootFiles::Winpe { wimboot, wim, extra }) => {
            let (WimbootAt::Image(wimboot) | WimbootAt::Loader(wimboot)) = wimboot;
            let extra: usize = extra.iter().map(|name| per_file + 5 * name.len()).sum();
            2 * per_file + 3 * (wimboot.len() + wim.len()) + extra
        }
        Some(BootFiles::Linux { kernel, initrds }) => {
            let initrds: usize = initrds.iter().map(|name| per_file + 3 * name.len() + 24).sum();
            // One more for the address of its answer files.
            2 * per_file + 3 * kernel.len() + initrds
        }
        Some(
            BootFiles::Iso { iso: name }
            | BootFiles::Efi { program: name }
            | BootFiles::Script { script: name },
        ) => per_file + 3 * name.len(),
    };
    let native = image.gss.iter().flat_map(|gss| &gss.native);
    let native: usize =
        native.map(|program| 3 * (per_file + 3 * program.program.len() + 80) + urls.base.len()).sum();
    let named: usize = image.url_args.iter().map(|arg| per_file + 3 * arg.file.len() + arg.word.len()).sum();
    1_024 + WARNINGS_MAX * 160 + files + native + named + image.args.len()
}

fn winpe(
    script: &mut Script<'_>,
    image: &Image,
    who: &Identity,
    wimboot: &WimbootAt,
    wim: &str,
    extra: &[String],
    urls: Urls<'_>,
) {
    let extra_len = extra.len();
    let wim_len = image.files.iter().find(|file| file.name == wim).map_or(0, |file| file.len);
    let is_32_bit = who.firmware() == Some(Platform::Bios) || who.build_arch.as_deref() == Some("i386");
    if is_32_bit && wim_len >= WIM_MAX_32_BIT {
        script.raw("echo Warning: the WIM has ").number(wim_len >> 20);
        script.raw(" MiB, more than a 32-bit iPXE can be expected to load\n");
    }
    let extra: Vec<&str> = usable(extra, wim);
    if extra.len() < extra_len {
        script.raw("echo Warning: wimboot takes up to 60 files, each name once and at most 31 characters; ");
        script.raw("some are left out\n");
    }
    let mut unknown = false;
    let mut options: Vec<&'static str> = Vec::new();
    let mut index = image.index;
    for word in image.args.split_ascii_whitespace() {
        // wimboot stops the boot at a word it does not know.
        match WIMBOOT_OPTIONS.iter().find(|option| **option == word) {
            Some(option) => options.push(option),
            None => match word.strip_prefix("index=").and_then(|number| number.parse().ok()) {
                Some(number) => index = index.or(Some(number)),
                None => unknown = true,
            },
        }
    }
    options.dedup();
    warn_lost_arguments(script, unknown);
    // By this name wimboot knows its own file among the others, which it copies into the booted system.
    script.raw("kernel --name wimboot").raw(TIMEOUT);
    match wimboot {
        WimbootAt::Image(name) => _ = url(script, urls, image, name),
        WimbootAt::Loader(name) => {
            script.base(urls.base).raw("/s/").token(urls.token).raw("/loaders/").path(name);
        }
    }
    if let Some(index) = index {
        script.raw(" index=").number(index.into());
    }
    for option in options.into_iter().take(WIMBOOT_OPTIONS.len()) {
        script.raw(" ").raw(option);
    }
    script.raw(" || goto failed\n");
    for name in extra {
        initrd(script, |script| _ = script.arg(base_name(name)), |script| _ = url(script, urls, image, name));
    }
    // Last, because its last byte is what counts as delivered; by the name that the WIM's own BCD asks for.
    initrd(script, |script| _ = script.raw("boot.wim"), |script| _ = url(script, urls, image, wim));
    script.raw("boot || goto failed\ngoto local\n");
}

/// The extra files wimboot can be given: it knows files by the last part of their names, whatever the case.
fn usable<'a>(extra: &'a [String], wim: &str) -> Vec<&'a str> {
    let mut kept: Vec<&str> = Vec::new();
    for name in extra {
        let taken = |other: &str| base_name(other).eq_ignore_ascii_case(base_name(name));
        let reserved = ["boot.wim", "wimboot", wim].into_iter().any(taken);
        if base_name(name).len() <= WIMBOOT_NAME_MAX && !reserved && !kept.iter().any(|kept| taken(kept)) {
            kept.push(name);
        }
    }
    kept.truncate(WIMBOOT_FILES_MAX);
    kept
}

/// What wimboot 2.9 knows besides `index=`.
const WIMBOOT_OPTIONS: [&str; 7] = ["rawbcd", "rawwim", "gui", "pause", "pause=quiet", "quiet", "linear"];

/// UEFI takes the name from `--name`, BIOS from the argument behind the URL.
fn initrd(script: &mut Script<'_>, name: impl Fn(&mut Script<'_>), url: impl FnOnce(&mut Script<'_>)) {
    script.raw("initrd --name ");
    name(script);
    script.raw(TIMEOUT);
    url(script);
    script.raw(" ");
    name(script);
    script.raw(" || goto failed\n");
}

fn linux(
    script: &mut Script<'_>,
    image: &Image,
    who: &Identity,
    job: Option<JobId>,
    kernel: &str,
    initrds: &[String],
    urls: Urls<'_>,
) {
    warn_lost_arguments(script, Script::args_are_changed(&image.args));
    let initrds = || initrds.iter().take(INITRDS_MAX).enumerate();
    script.raw("kernel --name vmlinuz").raw(TIMEOUT);
    url(script, urls, image, kernel);
    // Kernels before 5.8 and iPXE of their time find an initrd on UEFI by this argument only.
    if who.firmware() != Some(Platform::Bios) {
        for (index, _) in initrds() {
            script.raw(" initrd=initrd").number(index as u64);
        }
    }
    if let Some(mac) = who.mac {
        script.raw(" bootstorm.mac=").mac(mac);
    }
    if let Some(job) = job {
        script.raw(" bootstorm.job=").job(job);
    }
    if !image.answers.is_empty() {
        script.raw(" bootstorm.answers=");
        script.base(urls.base).raw("/s/").token(urls.token).raw("/answers/").segment(&image.name);
    }
    // Ours first: what the operator wrote may hold the `--` behind which everything belongs to init.
    url_args(script, urls, image);
    script.raw(" ").args(&image.args).raw(" || goto failed\n");
    for (index, name) in initrds() {
        // No argument behind the URL: on BIOS it would wrap the initrd into a file of that name.
        script.raw("initrd --name initrd").number(index as u64).raw(TIMEOUT);
        url(script, urls, image, name).raw(" || goto failed\n");
    }
    script.raw("boot || goto failed\ngoto local\n");
}

fn url<'s, 'o>(script: &'s mut Script<'o>, urls: Urls<'_>, image: &Image, file: &str) -> &'s mut Script<'o> {
    script
        .base(urls.base)
        .raw("/s/")
        .token(urls.token)
        .raw("/images/")
        .segment(&image.name)
        .raw("/")
        .path(file)
}

fn warn_lost_arguments(script: &mut Script<'_>, lost: bool) {
    if lost {
        script.raw("echo Warning: some arguments of this image cannot be passed on and are left out\n");
    }
}

fn base_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn platform_word(platform: Platform) -> &'static str {
    match platform {
        Platform::Bios => "BIOS",
        Platform::Efi => "UEFI",
        Platform::Other => "another firmware",
    }
}

fn cpu_word(cpu: Cpu) -> &'static str {
    match cpu {
        Cpu::X86 => "32-bit x86",
        Cpu::X64 => "64-bit x86",
        Cpu::Arm32 => "32-bit ARM",
        Cpu::Arm64 => "64-bit ARM",
        Cpu::Other => "something else",
    }
}
