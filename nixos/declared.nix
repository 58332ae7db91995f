# The stores of the daemon's file, wherever they were declared, and the one that is meant where none is named.
{ lib, cfg }:

let
  inherit (cfg) settings;

  # Of `nixStore`: no entry means these without naming them.
  ofNixStore = lib.optionals (cfg.nixStore.enable && cfg.nixStore.store == "nix-store") [
    "nix-store"
    "nix-store-disk"
  ];
  others = removeAttrs settings.stores ofNixStore;
  names = if others == { } then [ "default" ] else lib.attrNames others;

  # Without any the daemon has one of its own. Beside those of `nixStore` that one has to be in the file.
  entries = lib.concatMap lib.attrValues [
    settings.mounts
    settings.virtiofs
    settings.listen
    cfg.virtiofs
  ];
  hasDefault =
    others == { }
    && (
      settings.stores == { } || lib.any (entry: entry.store == null || entry.store == "default") entries
    );
  stores =
    lib.optionalAttrs hasDefault { default.url = "local:/var/lib/castore-fs"; } // settings.stores;

  only = if lib.length names == 1 then lib.head names else null;
in
{
  inherit names stores;

  # The name of the store that `store = name` means; null if that is not one.
  meant = name: if name == null then only else name;

  # The URL of a store by its name; "" if it has none, which is an assertion's to report.
  urlOf = name: if name == null then "" else toString (stores.${name}.url or "");

  # `entries` with the name of a store in each, where the daemon cannot know it.
  filled = lib.mapAttrs (
    _: entry: lib.optionalAttrs (ofNixStore != [ ] && only != null) { store = only; } // entry
  );
}
