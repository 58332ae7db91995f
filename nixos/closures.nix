# Guests whose store paths are declared (`virtiofs.<name>.closure`): castore-fs-closure-NAME.service imports exactly
# these, and the daemon shows the guest these and no others: none until the import is done. What starts the guest is
# to be ordered after that service (docs/nixos.md).
#
# A switch imports another closure, and the roots of former ones stay as long as a guest may use them, which is until
# the host boots again.
#
# Beside them the guest finds its registration, the root of `closureInfo`: what its Nix has to know of
# the paths (`regInfo=` on the kernel's command line; see ./guest.nix).
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.castore-fs;
  inherit (import ./render.nix { inherit lib; }) closureFile;
  declared = import ./declared.nix { inherit lib cfg; };

  daemon = "castore-fs.service";
  guests = lib.filterAttrs (_: guest: guest.closure != null) cfg.virtiofs;

  urlOf = guest: declared.urlOf (declared.meant guest.store);
  # What is shown to the guests of the same store: its roots are not to be removed.
  registrationsIn =
    url:
    map (guest: guest.registration) (lib.filter (guest: urlOf guest == url) (lib.attrValues guests));
in
{
  config = lib.mkIf (cfg.enable && guests != { }) {
    assertions = lib.mapAttrsToList (name: guest: {
      assertion = lib.hasPrefix "local:" (urlOf guest) && !guest.isolated;
      message = ''services.castore-fs: the guest "${name}" has a `closure`, which the host imports into a store with a `local:` URL and the daemon shows a part of. Give `virtiofs.${name}.store` such a store, and leave out `virtiofs.${name}.isolated`.'';
    }) guests;

    systemd.services = lib.mapAttrs' (
      name: guest:
      lib.nameValuePair "castore-fs-closure-${name}" {
        description = "Import the store paths of the virtual machine ${name}";
        wantedBy = [ "multi-user.target" ];
        # The daemon makes the store.
        wants = [ daemon ];
        after = [ daemon ];
        path = [
          cfg.package
          pkgs.coreutils
          pkgs.findutils
          pkgs.gnused
          pkgs.util-linux
        ];
        script = lib.escapeShellArgs (
          [
            pkgs.runtimeShell
            # As a file of the Nix store, of which the unit keeps a reference.
            "${./import-closure.sh}"
            (urlOf guest)
            "${guest.registration}"
            (closureFile name)
            "/var/lib/castore-fs-closures"
          ]
          ++ map (registration: "${registration}") (registrationsIn (urlOf guest))
        );
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          RuntimeDirectory = "castore-fs-closures";
          RuntimeDirectoryPreserve = true;
          StateDirectory = "castore-fs-closures";
          StateDirectoryMode = "0700";
        }
        // lib.optionalAttrs (cfg.user != null) {
          User = cfg.user;
          Group = cfg.group;
        };
      }
    ) guests;
  };
}
