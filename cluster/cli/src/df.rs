//! `blockyard df`.

use std::collections::BTreeMap;

use blockyard_client::metadata;
use cluster_proto::OsdId;
use cluster_proto::map::{ClusterMap, OsdStats};
use serde::Serialize;

use crate::error::CliError;
use crate::osd::statistics;
use crate::output::{Output, table};
use crate::session::Session;
use crate::size::Size;

/// Space as shown. Bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Space {
    raw: Usage,
    pools: Vec<PoolSpace>,
    osds: Vec<OsdSpace>,
}

/// A part of a size. Bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Usage {
    total: u64,
    used: u64,
    free: u64,
}

impl Usage {
    fn of(stats: &OsdStats) -> Self {
        let (total, used) = (stats.space.total, stats.space.used);
        Self { total, used, free: total.saturating_sub(used) }
    }

    fn add(self, other: Self) -> Self {
        Self { total: self.total + other.total, used: self.used + other.used, free: self.free + other.free }
    }

    fn cells(&self) -> [String; 4] {
        let percent = (u128::from(self.used) * 100).checked_div(u128::from(self.total));
        let percent = percent.map_or("-".into(), |percent| format!("{percent}%"));
        [Size(self.total).to_string(), Size(self.used).to_string(), Size(self.free).to_string(), percent]
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PoolSpace {
    name: String,
    images: usize,
    /// Sum of the images' sizes.
    provisioned: u64,
    /// What can still be written, if nothing else is written to other pools and all OSDs fill evenly.
    available: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct OsdSpace {
    id: OsdId,
    weight: f64,
    #[serde(flatten)]
    usage: Usage,
    objects: u64,
}

/// Shows the space.
pub async fn df(session: &Session, out: Output) -> Result<(), CliError> {
    let map = session.map().await?;
    let osds = osds(&map, &statistics(session).await?);
    let raw = osds.iter().map(|osd| osd.usage).fold(Usage::default(), Usage::add);
    let within = osds.iter().filter(|osd| osd.weight > 0.0).map(|osd| osd.usage.free).sum();
    let pools = pools(session, &map, within).await?;
    out.show(&Space { raw, pools, osds }, text)
}

fn osds(map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) -> Vec<OsdSpace> {
    let osd = |(id, config): (&OsdId, &cluster_proto::map::OsdConfig)| {
        let stats = stats.get(id).cloned().unwrap_or_default();
        OsdSpace { id: *id, weight: config.effective_weight(), usage: Usage::of(&stats), objects: stats.space.objects }
    };
    map.osd_configs.iter().map(osd).collect()
}

async fn pools(session: &Session, map: &ClusterMap, free: u64) -> Result<Vec<PoolSpace>, CliError> {
    let images = metadata::images(&*session.store).await?;
    let pool = |config: &cluster_proto::map::PoolConfig| {
        let own: Vec<_> = images.iter().filter(|info| info.pool_config.name == config.name).collect();
        PoolSpace {
            name: config.name.clone(),
            images: own.len(),
            provisioned: own.iter().map(|info| info.meta.size).sum(),
            available: available(config, free),
        }
    };
    Ok(map.pools.values().map(pool).collect())
}

/// Bytes of data that fit into so much raw space.
fn available(config: &cluster_proto::map::PoolConfig, free: u64) -> u64 {
    let share = u128::from(free) * config.scheme.copies_needed() as u128 / config.width().max(1) as u128;
    u64::try_from(share).unwrap_or(u64::MAX)
}

fn text(space: &Space) -> String {
    let mut text = table([">RAW", ">USED", ">FREE", ">"], [space.raw.cells()]);
    text += "\n";
    let pool = |pool: &PoolSpace| {
        let sizes = [pool.provisioned, pool.available].map(|bytes| Size(bytes).to_string());
        let [provisioned, available] = sizes;
        [pool.name.clone(), pool.images.to_string(), provisioned, available]
    };
    text += &table(["POOL", ">IMAGES", ">PROVISIONED", ">AVAILABLE"], space.pools.iter().map(pool));
    text += "\n";
    let osd = |osd: &OsdSpace| {
        let [total, used, free, percent] = osd.usage.cells();
        [osd.id.to_string(), format!("{:.4}", osd.weight), total, used, free, percent, osd.objects.to_string()]
    };
    text + &table([">OSD", ">WEIGHT", ">SIZE", ">USED", ">FREE", ">", ">OBJECTS"], space.osds.iter().map(osd))
}
