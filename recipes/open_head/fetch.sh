#!/bin/sh
# Fetches the free packages and repositories that recordings.csv names: fetch.sh DATA
# Needs apt-get (Debian or Ubuntu), dpkg and git. About 260 MB.
set -eu
data=$1
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$data/deb/x" "$data/git"

cd "$data/deb"
for package in fluid-soundfont-gm fluid-soundfont-gs openclonk-data; do
    apt-get download "$package"
    mkdir -p "x/$package"
    dpkg -x "$package"_*.deb "x/$package"
done
cd - > /dev/null

for repository in AntumMT/mod-sounds rafaelmardojai/blanket DrunkenToast/gui-project IBM/MAX-Audio-Classifier \
    schmich/marinara jonjonsson/SoundMonster jarombouts/SimpleKanban jtgsystems/modern-alarm-clock sfence/mobs_animal Fris0uman/CDDA-Soundpacks; do
    folder="$data/git/$(echo "$repository" | tr / +)"
    [ -d "$folder" ] || git clone --depth 1 "https://github.com/$repository" "$folder"
done

sounds=$(realpath "$data/deb/x/openclonk-data/usr/share/games/openclonk/Sound.ocg")
target=$(realpath "$data")/openclonk/Sound.ocg
cd "$here" && python -m recipes.open_head.openclonk "$sounds" "$target"
