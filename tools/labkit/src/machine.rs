//! QEMU machines under software emulation (iPXE does not run under KVM here).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::process::{Process, tool};
use crate::{Namespace, unique};

/// How a machine starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firmware {
    /// SeaBIOS; the NIC's ROM is iPXE, so it goes straight to the script.
    Bios,
    /// OVMF with its own PXE stack (the NIC has no ROM), so it fetches a loader by TFTP.
    Uefi,
    /// OVMF with PXE switched off: UEFI HTTP Boot.
    UefiHttp,
    /// OVMF with Secure Boot on; it trusts the test key that Debian's package ovmf brings ([`SNAKEOIL`]), and no other.
    UefiSecure,
}

/// Certificate, key and the key's passphrase that [`Firmware::UefiSecure`] trusts.
pub const SNAKEOIL: (&str, &str, &str) =
    ("/usr/share/ovmf/PkKek-1-snakeoil.pem", "/usr/share/ovmf/PkKek-1-snakeoil.key", "snakeoil");

/// What machine to start.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Firmware.
    pub firmware: Firmware,
    /// MAC address of its only NIC.
    pub mac: String,
    /// SMBIOS UUID.
    pub uuid: String,
    /// Local disk image.
    pub disk: Option<PathBuf>,
    /// Memory, MiB.
    pub memory: u32,
    /// Brings what a BIOS machine shows on its screen to the serial port, as UEFI does by itself.
    pub screen_on_serial: bool,
    /// Files for the firmware: QEMU's `-fw_cfg name=`, and the file's path.
    pub firmware_files: Vec<(&'static str, PathBuf)>,
    /// SMBIOS system texts: QEMU's `-smbios type=1,` and this, commas doubled.
    pub smbios: String,
}

impl MachineSpec {
    /// A machine with the given firmware and last byte of its MAC address.
    pub fn new(firmware: Firmware, number: u8) -> Self {
        Self {
            firmware,
            mac: format!("52:54:00:77:00:{number:02x}"),
            uuid: format!("4c4c4544-0042-3510-8052-b4c04f5642{number:02x}"),
            disk: None,
            memory: if firmware == Firmware::Bios { 512 } else { 1024 },
            screen_on_serial: false,
            firmware_files: Vec::new(),
            smbios: String::new(),
        }
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    serial: PathBuf,
    _place: Place,
}

/// Machines running at once: an emulated one uses a whole core.
const MACHINES_MAX: u32 = 2;
static RUNNING: (Mutex<u32>, Condvar) = (Mutex::new(0), Condvar::new());

#[derive(Debug)]
struct Place;

impl Place {
    fn take() -> Self {
        let (lock, freed) = &RUNNING;
        let mut running = lock.lock().unwrap_or_else(|e| e.into_inner());
        while *running >= MACHINES_MAX {
            running = freed.wait(running).unwrap_or_else(|e| e.into_inner());
        }
        *running += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (lock, freed) = &RUNNING;
        *lock.lock().unwrap_or_else(|e| e.into_inner()) -= 1;
        freed.notify_one();
    }
}

impl Machine {
    /// Starts a machine on a tap of `bridge` in `namespace`; its files go to `folder`.
    /// Waits while too many machines run.
    pub fn start(spec: &MachineSpec, namespace: &Namespace, bridge: &str, folder: &Path) -> Self {
        let place = Place::take();
        let qemu = tool("qemu-system-x86_64", "qemu-system-x86");
        let tap = namespace.tap(bridge);
        let number = unique();
        let serial = folder.join(format!("serial-{number}.log"));
        let mut command: Command = namespace.command(qemu);
        command.args(["-accel", "tcg", "-cpu", "max", "-display", "none", "-monitor", "none", "-no-reboot"]);
        command.arg("-m").arg(spec.memory.to_string());
        command.arg("-serial").arg(format!("file:{}", serial.display()));
        command.arg("-uuid").arg(&spec.uuid);
        if !spec.smbios.is_empty() {
            command.arg("-smbios").arg(format!("type=1,{}", spec.smbios));
        }
        if spec.screen_on_serial {
            command.args(["-vga", "none"]);
            if spec.firmware == Firmware::Bios {
                command.args(["-machine", "pc,graphics=off"]);
            }
        }
        command.arg("-netdev").arg(format!("tap,id=n,ifname={tap},script=no,downscript=no"));
        let rom = if spec.firmware == Firmware::Bios { "" } else { ",romfile=" };
        command.arg("-device").arg(format!("virtio-net-pci,netdev=n,mac={},bootindex=1{rom}", spec.mac));
        if spec.firmware != Firmware::Bios {
            let (code, template): (&[&str], &[&str]) = match spec.firmware {
                Firmware::UefiSecure => {
                    // Its variables are kept by system management mode, which nothing else may write to.
                    command.args([
                        "-machine",
                        "q35,smm=on",
                        "-global",
                        "driver=cfi.pflash01,property=secure,value=on",
                    ]);
                    (
                        &["/usr/share/OVMF/OVMF_CODE_4M.snakeoil.fd"],
                        &["/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"],
                    )
                }
                _ => (
                    &["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd"],
                    &["/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/OVMF/OVMF_VARS.fd"],
                ),
            };
            let (code, template) = (first_of(code, "ovmf"), first_of(template, "ovmf"));
            let variables = folder.join(format!("vars-{number}.fd"));
            fs::copy(template, &variables).expect("firmware variables can be copied");
            command.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={}", code.display()));
            command.arg("-drive").arg(format!("if=pflash,format=raw,file={}", variables.display()));
        }
        if spec.firmware == Firmware::UefiHttp {
            for name in ["IPv4PXESupport", "IPv6PXESupport"] {
                command.arg("-fw_cfg").arg(format!("name=opt/org.tianocore/{name},string=n"));
            }
        }
        for (name, path) in &spec.firmware_files {
            command.arg("-fw_cfg").arg(format!("name={name},file={}", path.display()));
        }
        if let Some(disk) = &spec.disk {
            command.arg("-drive").arg(format!("if=ide,format=raw,file={}", disk.display()));
        }
        let output = folder.join(format!("qemu-{number}.log"));
        Self { process: Process::spawn("qemu", &mut command, &output), serial, _place: place }
    }

    /// Waits for the first of `words` on its serial port; which one it was, or `None` when time is up. Panics when the
    /// machine ends without a word.
    pub fn see(&mut self, words: &[&str], patience: Duration) -> Option<usize> {
        self.process.see_in(&self.serial, words, patience)
    }

    /// What came out of its serial port so far.
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    /// Waits until its serial port has said `text`; the line.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> String {
        let serial = self.serial.clone();
        self.process.wait_for_in(&serial, text, patience)
    }
}

fn first_of(paths: &[&str], package: &str) -> PathBuf {
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("{} is missing: apt-get install --no-install-recommends {package}", paths[0])
    })
}
