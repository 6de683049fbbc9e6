//! How long issuer and roots have to live: as metrics, and as conditions when it becomes little.

use std::time::{Duration, SystemTime};

use heddle_api::names::TRUST_ROOT_SECRET;

use super::Keeper;
use crate::ca::{Authority, ends_first};

/// A root takes longest to replace: everybody must be told of the next one first.
const ROOT_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// An issuer that lives long is warned of this long before its end.
const ISSUER_WARNING: Duration = Duration::from_secs(7 * 24 * 3600);

const ISSUER_EXPIRING: &str = "IssuerExpiring";
const ROOT_EXPIRING: &str = "RootExpiring";

pub(super) fn note(keeper: &Keeper, current: &Authority) {
    let now = SystemTime::now();
    let issuer = current.not_after();
    keeper.metrics.set_expiry("issuer", issuer);
    // Below two lives of a leaf every leaf is cut short.
    let margin = ISSUER_WARNING.min(current.lifetime() / 5).max(current.leaf_lifetime() * 2);
    warn(keeper, ISSUER_EXPIRING, "the issuing certificate", issuer, margin, now);
    // Of those on their way out nobody needs to be warned.
    if let Some(earliest) = ends_first(current.roots()) {
        keeper.metrics.set_expiry("root", earliest);
        warn(keeper, ROOT_EXPIRING, "a root in ca.crt", earliest, ROOT_WARNING, now);
    }
}

fn warn(
    keeper: &Keeper,
    reason: &'static str,
    what: &str,
    end: SystemTime,
    margin: Duration,
    now: SystemTime,
) {
    let left = end.duration_since(now).unwrap_or_default();
    if left >= margin {
        return keeper.conditions.clear(reason);
    }
    let message = match left.as_secs() / 86_400 {
        0 => format!("{what} ends in {} hours; replace it now", left.as_secs() / 3600),
        days => format!("{what} ends in {days} days; replace it"),
    };
    keeper.conditions.set(reason, keeper.about(TRUST_ROOT_SECRET, true, message));
}
