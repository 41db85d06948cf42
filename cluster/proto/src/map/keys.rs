//! Keys of the cluster state, grouped by who watches them.
//!
//! | range | watched by |
//! |---|---|
//! | `config/` | every daemon and client |
//! | `osd/` | every daemon and client: addresses, bound to a lease |
//! | `pg/` | every daemon and client; map, activation and history in one range, because their order matters |
//! | `scrub/` | every OSD; what is asked for, and what was done: a write for each PG and interval, because whoever leads next must know |
//! | `suspect/` | the monitor |
//! | `image/` | a client watches the single keys of the images it has open |
//! | `export/` | gateways |
//! | `gateway/` | the CLI |
//! | `stats/` | nobody: read on demand |

use crate::ids::{LayerId, OsdId, PgId, PoolId};

/// Prefix of every key.
pub const ROOT: &str = "/blockyard/";
/// Configuration.
pub const CONFIG: &str = "/blockyard/config/";
/// Identity of the cluster.
pub const CLUSTER: &str = "/blockyard/config/cluster";
/// The placement tree.
pub const TREE: &str = "/blockyard/config/tree";
/// Settings of the whole cluster.
pub const SETTINGS: &str = "/blockyard/config/settings";
/// The highest number of a pool that was removed: numbers are not used twice.
pub const LAST_POOL: &str = "/blockyard/config/last-pool";
/// The highest number of an OSD that was removed.
pub const LAST_OSD: &str = "/blockyard/config/last-osd";
/// Liveness and addresses of OSDs.
pub const OSDS: &str = "/blockyard/osd/";
/// PG maps, activations, history.
pub const PGS: &str = "/blockyard/pg/";
/// Scrubs: those that operators asked for, by PG, and [`SCRUBBED`].
pub const SCRUBS: &str = "/blockyard/scrub/";
/// What has been scrubbed.
pub const SCRUBBED: &str = "/blockyard/scrub/done/";
/// Images.
pub const IMAGES: &str = "/blockyard/image/";
/// Image metadata, by layer.
pub const LAYERS: &str = "/blockyard/image/layer/";
/// The highest layer number given out.
pub const LAST_LAYER: &str = "/blockyard/image/last-layer";
/// Exports.
pub const EXPORTS: &str = "/blockyard/export/";
/// Liveness and addresses of gateways.
pub const GATEWAYS: &str = "/blockyard/gateway/";
/// Statistics.
pub const STATS: &str = "/blockyard/stats/";
/// What OSDs report of others that they cannot reach; watched by the monitor.
pub const SUSPICIONS: &str = "/blockyard/suspect/";
/// The monitor that leads, bound to its lease.
pub const LEADER: &str = "/blockyard/mon/leader";

/// Configuration of a pool.
pub fn pool(id: PoolId) -> String {
    format!("{CONFIG}pool/{id}")
}

/// Configuration of an OSD.
pub fn osd_config(id: OsdId) -> String {
    format!("{CONFIG}osd/{id}")
}

/// Liveness and address of an OSD.
pub fn osd(id: OsdId) -> String {
    format!("{OSDS}{id}")
}

/// What an OSD reports of others.
pub fn suspicion(reporter: OsdId) -> String {
    format!("{SUSPICIONS}{reporter}")
}

/// Statistics of an OSD.
pub fn osd_stats(id: OsdId) -> String {
    format!("{STATS}osd/{id}")
}

/// Map of a PG.
pub fn pg_map(pg: PgId) -> String {
    format!("{PGS}map/{pg}")
}

/// Activation record of a PG.
pub fn pg_activation(pg: PgId) -> String {
    format!("{PGS}activation/{pg}")
}

/// Past intervals of a PG.
pub fn pg_history(pg: PgId) -> String {
    format!("{PGS}history/{pg}")
}

/// The PG whose activation record or history this is.
pub fn pg_record(key: &str) -> Option<PgId> {
    let (group, pg) = key.strip_prefix(PGS)?.split_once('/')?;
    let (pool, index) = pg.split_once('/').filter(|_| matches!(group, "activation" | "history"))?;
    Some(PgId { pool: PoolId(pool.parse().ok()?), index: index.parse().ok()? })
}

/// The scrub of a PG that an operator asked for last.
pub fn scrub(pg: PgId) -> String {
    format!("{SCRUBS}{pg}")
}

/// What has been scrubbed of a PG.
pub fn scrubbed(pg: PgId) -> String {
    format!("{SCRUBBED}{pg}")
}

/// Metadata of a layer.
pub fn layer(id: LayerId) -> String {
    format!("{LAYERS}{id}")
}

/// Index from pool and image name to the image's top layer. Names are percent-encoded so that any text is one key.
pub fn image_name(pool: PoolId, name: &str) -> String {
    format!("{IMAGES}name/{pool}/{}", encode(name))
}

/// Prefix of the names of a pool's images.
pub fn image_names(pool: PoolId) -> String {
    format!("{IMAGES}name/{pool}/")
}

/// An export.
pub fn export(name: &str) -> String {
    format!("{EXPORTS}{}", encode(name))
}

/// Percent-encodes what could be mistaken for structure.
pub fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '%' | '/' | '\0'..=' ' | '\x7f' => {
                let mut utf8 = [0; 4];
                for b in c.encode_utf8(&mut utf8).bytes() {
                    out.push_str(&format!("%{b:02X}"));
                }
            }
            _ => out.push(c),
        }
    }
    out
}

/// Undoes [`encode`]; `None` if it is not something that it makes.
pub fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let digit = |b: Option<u8>| char::from(b?).to_digit(16).map(|d| d as u8);
        match byte {
            b'%' => out.push(digit(bytes.next())? << 4 | digit(bytes.next())?),
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_from_maps() {
        let pg = PgId { pool: PoolId(3), index: 17 };
        assert_eq!([pg_activation(pg), pg_history(pg)].map(|key| pg_record(&key)), [Some(pg); 2]);
        let others = [pg_map(pg), scrub(pg), "/blockyard/pg/history/3".into(), "/blockyard/pg/history/3/x".into()];
        assert!(others.iter().all(|key| pg_record(key).is_none()));
    }

    #[test]
    fn names_cannot_escape_their_key() {
        assert_eq!(image_name(PoolId(1), "a/b c%"), "/blockyard/image/name/1/a%2Fb%20c%25");
        assert_eq!(encode("größe-1.img"), "größe-1.img");
        for name in ["a/b c%", "größe-1.img", "", "%2F\0\x7f"] {
            assert_eq!(decode(&encode(name)).as_deref(), Some(name));
        }
        assert_eq!(decode("%2"), None);
        assert_eq!(decode("%zz"), None);
        assert_eq!(decode("%ff"), None);
    }
}
