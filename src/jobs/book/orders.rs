//! What an order must be before the book takes it.

use super::super::identity;
use super::super::image::Images;
use super::super::job::{Action, JobSpec, Selector};
use super::Refusal;

/// Everything a spec must be; whether it may wipe a disk.
pub(super) fn check_spec(spec: &JobSpec, images: &dyn Images) -> Result<bool, Refusal> {
    if spec.attempts == 0 {
        return Err(Refusal::NoAttempts);
    }
    let exact = spec.selector.is_exact();
    if !exact && !spec.always && spec.action.image().is_none() {
        return Err(Refusal::RuleOnce);
    }
    if !spec.then.is_empty() {
        let why = match () {
            () if spec.always => "a job with --always has no second image",
            () if !exact => "a rule has no second image",
            () if spec.then.len() >= SEQUENCE_MAX => "a sequence has at most 32 images",
            () if std::iter::once(&spec.action).chain(&spec.then).any(|action| action.image().is_none()) => {
                "what boots no image is no step"
            }
            () => "",
        };
        if !why.is_empty() {
            return Err(Refusal::Sequence { why });
        }
    }
    let mut destructive = false;
    for action in std::iter::once(&spec.action).chain(&spec.then) {
        destructive |= check_action(action, spec.always, &spec.selector, spec.allow_rule, images)?;
    }
    Ok(destructive)
}

/// Images of one sequence.
const SEQUENCE_MAX: usize = 32;

pub(super) fn check_action(
    action: &Action,
    always: bool,
    selector: &Selector,
    allow_rule: bool,
    images: &dyn Images,
) -> Result<bool, Refusal> {
    let Some(name) = action.image() else { return Ok(false) };
    let Some(image) = images.image(name) else {
        return Err(Refusal::UnknownImage { name: name.to_owned() });
    };
    if let Some(reason) = &image.unbootable {
        return Err(Refusal::CannotBoot { name: name.to_owned(), reason: reason.clone() });
    }
    if image.boot.is_none() {
        return Err(Refusal::CannotBoot {
            name: name.to_owned(),
            reason: "nothing in it was recognised as bootable".into(),
        });
    }
    if image.is_native_only() && needs_script(selector) {
        return Err(Refusal::NeedsIpxe { name: name.to_owned() });
    }
    if image.destructive && always {
        return Err(Refusal::DestructiveAlways { name: name.to_owned() });
    }
    if image.destructive && !selector.is_exact() && !allow_rule {
        return Err(Refusal::DestructiveRule { name: name.to_owned() });
    }
    Ok(image.destructive)
}

/// True for what firmware does not show: it is known when iPXE asks for its script, and not before.
fn needs_script(selector: &Selector) -> bool {
    match selector {
        Selector::Serial(_) | Selector::Asset(_) => true,
        Selector::Rule(rule) => rule.manufacturer.is_some() || rule.product.is_some(),
        Selector::Mac(_) | Selector::Uuid(_) | Selector::Any => false,
    }
}

pub(super) fn checked_selector(selector: Selector) -> Result<Selector, Refusal> {
    let selector = match selector {
        Selector::Serial(serial) => Selector::Serial(serial.trim().to_owned()),
        Selector::Asset(asset) => Selector::Asset(asset.trim().to_owned()),
        other => other,
    };
    let identifies = match &selector {
        // An adapter that goes from machine to machine is a fine name for a job: the next boot behind it.
        Selector::Mac(mac) => !mac.is_zero() && !mac.is_group(),
        Selector::Uuid(uuid) => uuid.is_identifying(),
        Selector::Serial(text) | Selector::Asset(text) => identity::is_identifying_text(text),
        Selector::Any | Selector::Rule(_) => true,
    };
    if identifies { Ok(selector) } else { Err(Refusal::NotIdentifying { selector }) }
}
