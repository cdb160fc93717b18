//! `script render`: from the running server, which knows the jobs.

use super::args::{Common, Render, ScriptVerb};
use super::{Done, Exit, Failure, client, output};
use crate::jobs::Identity;
use crate::wire::Arch;
use crate::wire::arch::Platform;

pub(super) fn run(common: &Common, verb: &ScriptVerb) -> Done {
    let ScriptVerb::Render(render) = verb;
    let who = serde_json::to_value(identity(render)?).map_err(|error| Failure::new(Exit::Runtime, error))?;
    let answer = client(common)?.post("/v1/script/render", &who)?;
    if render.json {
        output::json(&answer);
        return Ok(Exit::Fine);
    }
    if render.explain {
        output::remark(&format!("chosen: {}", answer["chosen"].as_str().unwrap_or_default()));
        for lost in answer["lost"].as_array().into_iter().flatten() {
            output::remark(&format!("lost: {}", lost.as_str().unwrap_or_default()));
        }
    }
    output::line(answer["script"].as_str().unwrap_or_default());
    Ok(Exit::Fine)
}

fn identity(render: &Render) -> Result<Identity, Failure> {
    let platform = match render.platform.as_deref() {
        None => render.arch.map(|arch| Arch(arch).platform()),
        Some("pcbios" | "bios") => Some(Platform::Bios),
        Some("efi" | "uefi") => Some(Platform::Efi),
        Some(other) => {
            return Err(Failure::new(Exit::Usage, format!("--platform {other:?}: expected pcbios or efi")));
        }
    };
    let who = Identity {
        mac: render.mac,
        uuid: render.uuid,
        serial: render.serial.clone(),
        asset: render.asset.clone(),
        manufacturer: render.manufacturer.clone(),
        product: render.product.clone(),
        arch: render.arch.map(Arch),
        platform,
        ..Identity::default()
    };
    if who.mac.is_none() && who.uuid.is_none() && who.serial.is_none() && who.asset.is_none() {
        return Err(Failure::new(Exit::Usage, "name a machine: --mac, --uuid, --serial or --asset"));
    }
    Ok(who)
}
