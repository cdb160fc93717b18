//! What machines boot, made on the spot: a tiny Linux that reports itself, and disks that say they were booted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{run, tool};

/// What init prints on the serial port, followed by the kernel's command line.
pub const INIT_WORD: &str = "LAB-INIT cmdline:";
/// What a local disk prints on the serial port.
pub const DISK_WORD: &str = "LOCAL DISK BOOTED";

/// The installed cloud kernel.
pub fn kernel() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/boot")
        .expect("/boot is readable")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .filter(|path| path.to_string_lossy().contains("cloud"))
        .collect();
    found.sort();
    found
        .pop()
        .expect("no cloud kernel in /boot: apt-get install --no-install-recommends linux-image-cloud-amd64")
}

/// Writes an initramfs whose init prints [`INIT_WORD`] with the command line and a SHA-256 of every file it finds in
/// `/` besides its own, and powers off.
pub fn initramfs(folder: &Path) -> PathBuf {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .expect("busybox is missing: apt-get install --no-install-recommends busybox-static");
    tool("cpio", "cpio");
    let root = folder.join("initramfs");
    for name in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(name)).expect("a folder for the initramfs");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("busybox can be copied");
    // The kernel gives init the console named last on its command line, which is the serial port.
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n\
         for f in /*; do [ -f \"$f\" ] && [ \"$f\" != /init ] && echo \"LAB-FILE $(/bin/busybox sha256sum \"$f\")\"; done\n\
         echo \"{INIT_WORD} $(/bin/busybox cat /proc/cmdline)\"\n/bin/busybox poweroff -f\n"
    );
    fs::write(root.join("init"), init).expect("init can be written");
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))
        .expect("init can be made executable");
    let archive = folder.join("initrd.gz");
    run(Command::new("sh")
        .current_dir(&root)
        .arg("-c")
        .arg(format!("find . | cpio --quiet -o -H newc | gzip -1 > '{}'", archive.display())));
    archive
}

/// A disk whose boot sector writes [`DISK_WORD`] to the first serial port.
pub fn local_disk(folder: &Path) -> PathBuf {
    // xor ax,ax; mov ds,ax; mov si,message; next: lodsb; test al,al; jz done; push ax; mov dx,3FDh;
    // wait: in al,dx; test al,20h; jz wait; pop ax; mov dx,3F8h; out dx,al; jmp next; done: hlt; jmp done; message:
    const CODE: [u8; 31] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x1f, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x10, 0x50, 0xba, 0xfd, 0x03, 0xec,
        0xa8, 0x20, 0x74, 0xfb, 0x58, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xeb, 0xf4, 0xeb, 0xfd,
    ];
    let mut sector = vec![0; 1 << 20];
    sector[..CODE.len()].copy_from_slice(&CODE);
    let message = format!("\r\n{DISK_WORD}\r\n");
    sector[CODE.len()..CODE.len() + message.len()].copy_from_slice(message.as_bytes());
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let path = folder.join("disk.img");
    fs::write(&path, sector).expect("the disk can be written");
    path
}
